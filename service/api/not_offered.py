"""What other servers have and this one does not, by path: so that its 404 says more than "no".

Only what clients are known to ask for. The list is no promise that all the rest exists.
"""

from __future__ import annotations

_EMBEDDINGS = "this server makes text; it has no embeddings"
_RERANK = "this server makes text; it does not rank or score documents"
_IMAGES = "this server makes text; it makes no images"
_AUDIO = "this server makes text; it neither speaks nor listens"
_STORED = "this server keeps files and batches between requests, and nothing else"
_OLLAMA = "this server does not speak Ollama's API; use OpenAI's, under /v1"
_LM_STUDIO = "this server does not speak LM Studio's API; use OpenAI's, under /v1"
_COMPLETION = "of llama.cpp's API this server has /infill and /props; use /v1/completions"
_SLOTS = "this server has no slots: sequences share the engine and its prefix cache"

_RESPONSES = "this server keeps no responses; send the dialogue so far as input to /v1/responses"

# By how a path begins, without /v1; the longest beginning counts. One with a slash at its end means
# what is below it alone.
_WORDS = {
    "/embeddings": _EMBEDDINGS,
    "/embedding": _EMBEDDINGS,
    "/embed": _EMBEDDINGS,
    "/pooling": _EMBEDDINGS,
    "/rerank": _RERANK,
    "/reranking": _RERANK,
    "/score": _RERANK,
    "/classify": _RERANK,
    "/moderations": "this server makes text; it does not moderate",
    "/images": _IMAGES,
    "/audio": _AUDIO,
    "/realtime": _AUDIO,
    "/responses/": _RESPONSES,
    "/conversations": _RESPONSES,
    "/uploads": _STORED,
    "/assistants": _STORED,
    "/threads": _STORED,
    "/vector_stores": _STORED,
    "/fine_tuning": "this server does not train",
    "/completion": _COMPLETION,
    "/slots": _SLOTS,
    "/lora-adapters": "this server serves no adapters",
    "/api": _OLLAMA,
    "/api/v0": _LM_STUDIO,
    "/api/v1": _LM_STUDIO,
}
_LONGEST = 128  # characters


def not_offered(path: str) -> str | None:
    """Say that what other servers have at a path isn't offered here; None for other paths."""
    path = path.removeprefix("/v1")
    # None of them is longer, and 64 KB of slashes would be joined in a quarter of a minute.
    parts = path[:_LONGEST].split("/")
    beginnings = [path[:_LONGEST]]
    for count in range(len(parts) - 1, 1, -1):
        beginning = "/".join(parts[:count])
        beginnings += [f"{beginning}/", beginning]
    words = next((_WORDS[one] for one in beginnings if one in _WORDS), None)
    return words and f"{words}; what there is stands in /openapi.json"
