"""Tools and calls to them, in one neutral shape that every API translates to and from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

Schema: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask its caller to run."""

    name: str
    description: str = ""
    parameters: Schema | None = None  # a JSON schema of its arguments; None takes any object
    is_strict: bool = False
    # Of a tool of one text, `input`: a regular expression that it matches as a whole.
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for; arguments: the text of a JSON object, possibly empty."""

    id: str
    name: str
    arguments: str


class ToolMode(enum.StrEnum):
    """Whether a turn may, must or must not call tools."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request, and how they may be used in its answer."""

    tools: Sequence[Tool] = ()
    mode: ToolMode = ToolMode.AUTO
    only: str | None = None  # the one tool that must be called, with mode REQUIRED
    # Whether one turn may call several; None: where the model was trained to call.
    is_parallel: bool | None = None
    allowed: Collection[str] | None = None  # names of those that may be called; None: all

    @property
    def callable(self) -> list[tuple[int, Tool]]:
        """Return the tools that the answer may call, each behind its place among all."""
        return [
            (place, tool)
            for place, tool in enumerate(self.tools)
            if self.only in (None, tool.name)
            and (self.allowed is None or tool.name in self.allowed)
        ]

    @property
    def may_call(self) -> bool:
        """Whether the answer may hold calls."""
        return bool(self.tools) and self.mode is not ToolMode.NONE


NO_TOOLS = ToolUse()
