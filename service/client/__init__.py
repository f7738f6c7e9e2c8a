"""A client of servers of OpenAI's API: what `tetrad chat` and `tetrad complete` ask with.

Where the server is, the key for it, requests, streams of answers and refusals. Shows nothing, and
knows nothing of terminals. What takes long to import (the HTTP client) is imported when it is used.
"""
