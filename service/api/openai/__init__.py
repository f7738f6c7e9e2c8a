"""OpenAI's API, and what vLLM adds to it: completions, chat, models."""
