"""Texts to tokens and back, in the shapes of vLLM and of llama.cpp."""
