"""llama.cpp's API, as far as editors use it: infilling, and what the server is."""
