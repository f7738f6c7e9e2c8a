"""From a dialogue to its prompt, with tools in the way that the variant's template takes them.

Templates that know of tools are given them, calls and results as they are; for others they are put
into words (`service.tools.generic_prompt`). Whoever runs a turn and whoever only shows its prompt
comes here, so that both see the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from service.errors import InvalidFieldError
from service.serving.prompts import within_context
from service.serving.text_lanes import run_in_lane
from service.text.errors import InvalidMessagesError
from service.text.messages import checked_turns, with_system_text
from service.text.render_options import AS_USUAL, RenderOptions
from service.tools.calls import NO_TOOLS, ToolUse
from service.tools.formats import format_of
from service.tools.generic_prompt import tools_in_words, turns_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.grammars.wanted import TextForm
    from service.serving.served_model import ServedModel
    from service.text.templates import ChatTemplate, RenderedPrompt
    from service.tools.calls import Tool
    from service.tools.formats import ToolFormat


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
    # The same of a tool's schema; {} is the tool's place.
    schema_param: str = "tools.{}.function.parameters"
    # The same of each tool, where they are not all named alike.
    schema_params: Sequence[str] | None = None

    def field_of(self, place: int) -> str:
        """Return the request's field of a tool's schema; place: of the tool in `tools`."""
        names = self.schema_params
        return self.schema_param.format(place) if names is None else names[place]


def tool_format_of(asked: AskedTurn, template: ChatTemplate) -> ToolFormat | None:
    """Return how a turn's calls are written; None where it may have none."""
    if not asked.tools.may_call:
        return None
    takes_tools = template.takes_tools and template.takes_tool_turns
    return format_of(template.source, takes_tools=takes_tools)


def settled(asked: AskedTurn, tool_format: ToolFormat | None, template: ChatTemplate) -> AskedTurn:
    """Leave one call a turn, unless the request says more, where the template takes no more.

    Then the model was trained on no more.
    """
    if tool_format is None or tool_format.is_generic or template.traits.takes_parallel_calls:
        return asked
    several = bool(asked.tools.is_parallel)
    return replace(asked, tools=replace(asked.tools, is_parallel=several))


async def render_turn(asked: AskedTurn, model: ServedModel) -> RenderedPrompt:
    """Return the prompt of a turn. Raises a RequestError or TextError."""
    template, limit = model.require_chat_template(), model.engine.max_model_len
    options = asked.options
    if options.most_tokens is None:
        options = replace(options, most_tokens=limit)

    def render() -> RenderedPrompt:
        messages, tools = _told(asked, template)
        return template.render_prompt(messages, options, tools)

    # Beside the event loop: a checkpoint's template runs in another process, which is waited for.
    with within_context(limit, asked.param), _told_of(asked.param):
        return await run_in_lane(size_of(asked), render)


async def render_turn_text(asked: AskedTurn, model: ServedModel) -> str:
    """Return the same as text for people. Raises a RequestError or TextError."""
    template = model.require_chat_template()

    def render() -> str:
        messages, tools = _told(asked, template)
        return template.render_text(messages, asked.options, tools)

    with _told_of(asked.param):
        return await run_in_lane(size_of(asked), render)


@contextlib.contextmanager
def _told_of(param: str) -> Iterator[None]:
    """Name the request's field in what is wrong with a dialogue: raises InvalidFieldError."""
    try:
        yield
    except InvalidMessagesError as error:
        raise InvalidFieldError(str(error), param=param) from error


def _told(
    asked: AskedTurn, template: ChatTemplate
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Tool]]:
    """Return the messages and the tools that the template is given."""
    tool_format = tool_format_of(asked, template)
    if tool_format is not None and tool_format.is_generic:
        told = with_system_text(
            turns_in_words(checked_turns(asked.messages)),
            tools_in_words(asked.tools),
            takes_system=template.traits.takes_system,
        )
        return told, ()
    if not template.takes_tool_turns and any(map(_tells_of_tools, asked.messages)):
        return turns_in_words(checked_turns(asked.messages)), ()
    return asked.messages, () if tool_format is None else asked.tools.tools


def _tells_of_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def size_of(asked: AskedTurn) -> int:
    """Count about the characters that there are to read."""
    options = asked.options
    given = [*asked.messages, *(options.documents or ()), options.template_kwargs]
    texts = sum(len(text) for one in given for text in one.values() if isinstance(text, str))
    calls = [call for one in asked.messages for call in one.get("tool_calls") or ()]
    tools = sum(len(str(tool.parameters)) + len(tool.description) for tool in asked.tools.tools)
    return texts + tools + sum(len(call.arguments) for call in calls)
