"""In which server's words a path's errors are told, by the list of endpoints.

By `scope["path"]` and nothing else, so that also what is raised before any handler runs (no key, a
body that is too large) has the shape that the path's clients know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from service.api.endpoint import ErrorShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.api.endpoint import Endpoint

ShapeRule: TypeAlias = "Callable[[str], ErrorShape]"


def shape_rule(endpoints: Iterable[Endpoint]) -> ShapeRule:
    """Return what tells the shape of a path's errors; OpenAI's where no endpoint says otherwise.

    Raises ValueError for endpoints whose shape cannot be told by their path.
    """
    listed: dict[str, ErrorShape] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            if "{" in path and endpoint.errors is not ErrorShape.OPENAI:
                raise ValueError(f"{path} has a parameter, so its errors can only be OpenAI's")
            if listed.setdefault(path, endpoint.errors) is not endpoint.errors:
                raise ValueError(f"two endpoints at {path} tell errors in different shapes")

    # Anthropic's clients ask for more below their paths than is there (/v1/messages/batches).
    heads = tuple(f"{path}/" for path, shape in listed.items() if shape is ErrorShape.ANTHROPIC)

    def shape_of(path: str) -> ErrorShape:
        below = ErrorShape.ANTHROPIC if path.startswith(heads) else ErrorShape.OPENAI
        return listed.get(path, below)

    return shape_of
