"""HTTP in, HTTP out: text, templates, keys, and the only place that knows Starlette and OpenAI."""
