"""From a dialogue to what the engine is asked: the prompt, the answer's form, and how it is read.

Shared by every API that takes dialogues. Knows no HTTP and no API's names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.serving.prompts import within_context
from service.serving.text_lanes import run_in_lane
from service.text.render_options import AS_USUAL, RenderOptions
from service.tools.calls import NO_TOOLS, ToolUse
from service.tools.turn_reader import PlainReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from service.grammars.wanted import TextForm
    from service.serving.served_model import ServedModel
    from service.tools.turn_reader import TurnReader


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTurn:
    """A dialogue whose next turn is asked for.

    messages: as the template is given them: `role` (system, user, assistant, tool), `content`,
    where there is one `name`, `reasoning_content`, `tool_calls` (of `ToolCall`), `tool_call_id`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: ToolUse = NO_TOOLS
    options: RenderOptions = AS_USUAL
    text_form: TextForm | None = None
    param: str = "messages"  # the request's field that errors name


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTurn:
    """What the engine is asked for a turn."""

    token_ids: Sequence[int]
    text_form: TextForm | None  # what was asked for, or what the tools make necessary
    new_reader: Callable[[], TurnReader]  # one for each choice
    kept_token_ids: frozenset[int] = field(default=frozenset())  # special pieces the reader needs


async def plan_turn(asked: AskedTurn, model: ServedModel) -> PlannedTurn:
    """Render a dialogue. Raises a RequestError or TextError."""
    template, limit = model.require_chat_template(), model.engine.max_model_len
    size = sum(len(str(message)) for message in asked.messages)
    with within_context(limit, asked.param):
        token_ids = await run_in_lane(size, lambda: template.render(asked.messages, asked.options))
    return PlannedTurn(token_ids=token_ids, text_form=asked.text_form, new_reader=PlainReader)
