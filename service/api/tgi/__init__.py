"""The API of text-generation-inference, as its clients and huggingface_hub use it."""
