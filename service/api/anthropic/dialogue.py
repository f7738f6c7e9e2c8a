"""From a request of the Messages API to the turn that is asked for: messages, tools, options.

Templates want one system text at the beginning, and users and assistants in turn; here they may
come in any order and several together. Results of tools are parts of a user's turn here, and turns
of their own there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from service.errors import InvalidFieldError
from service.serving.turns import AskedTurn
from service.text.render_options import RenderOptions
from service.tools.calls import NO_TOOLS, Tool, ToolCall, ToolMode, ToolUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from service.api.anthropic.fields import (
        Block,
        PromptRequest,
        TextBlock,
        Thinking,
        Turn,
    )
    from service.serving.served_model import ServedModel
    from service.text.render_options import KwargValue
    from service.text.templates import ChatTemplate

# An agent's first system line. It changes with each request and would keep all that follows it from
# the prefix cache: 18 s a turn, where it was left in (2026-11).
BILLING = "x-anthropic-billing-header:"
EFFORT = "reasoning_effort"  # templates' name for it
THINKING_SWITCHES = ("enable_thinking", "thinking")  # templates' names for it
FAILED = "Error: "  # before what a tool said that failed
CALL_PREFIX = "call_"  # of the ids of calls, as they are made here
TOOL_USE_PREFIX = "toolu_"  # and as clients of this API know them

_MODES = {
    "auto": ToolMode.AUTO,
    "any": ToolMode.REQUIRED,
    "tool": ToolMode.REQUIRED,
    "none": ToolMode.NONE,
}


def asked_turn(
    request: PromptRequest, model: ServedModel, *, most_tokens: int | None = None
) -> AskedTurn:
    """Return the turn that a request asks for. Raises InvalidFieldError or ChatNotSupportedError.

    most_tokens: a dialogue of more is refused.
    """
    template = model.require_chat_template()
    goes_on = _goes_on(request)
    return AskedTurn(
        messages=messages_of(request),
        tools=tools_of(request),
        options=RenderOptions(
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            template_kwargs=_kwargs(request, template),
            most_tokens=most_tokens,
        ),
        text_form=request.text_form,
        schema_param="tools.{}.input_schema",
    )


def messages_of(request: PromptRequest) -> list[dict[str, Any]]:
    """Return the dialogue as templates are given it; a turn begins where the role changes.

    Raises InvalidFieldError for a result of a call that was not made.
    """
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of tools, by the ids of their calls
    for number, turn in enumerate(request.messages):
        if turn.role == "assistant":
            names |= {block.id: block.name for block in turn.blocks if block.id and block.name}
            _add_assistants(messages, turn)
        elif turn.role == "user":
            _check_results(turn, number, names)
            _add_users(messages, turn, names)
    system = "\n\n".join(text for text in _system_texts(request) if text)
    told = map(_told, messages)
    return [{"role": "system", "content": system}, *told] if system else list(told)


def tools_of(request: PromptRequest) -> ToolUse:
    """Return the tools that may be called."""
    tools = [
        Tool(
            name=tool.name or "",
            description=tool.description or "",
            parameters=tool.input_schema,
            is_strict=bool(tool.strict),
        )
        for tool in request.own_tools
    ]
    choice = request.tool_choice
    if not tools:
        return NO_TOOLS
    if choice is None:
        return ToolUse(tools)
    is_single = choice.disable_parallel_tool_use
    return ToolUse(
        tools,
        mode=_MODES[choice.type],
        only=choice.name,
        is_parallel=None if is_single is None else not is_single,
    )


def unread(request: PromptRequest, model: ServedModel) -> list[str]:
    """Name what has no effect with this variant, or on its prompt."""
    template = model.require_chat_template()
    names = []
    system_turns = [turn for turn in request.messages if turn.role == "system"]
    billed: dict[str, list[str | None]] = {
        "system": [block.text for block in request.system or ()],
        "messages[].content[]": [block.text for turn in system_turns for block in turn.blocks],
    }
    names += [
        f"{field}.{BILLING.removesuffix(':')}"
        for field, texts in billed.items()
        if any(text and text.startswith(BILLING) for text in texts)
    ]
    if request.thinking and not _thinking_kwargs(request.thinking, template):
        never_thinks = request.thinking.type == "disabled" and template.reasoning_marks is None
        names += [] if never_thinks else ["thinking"]
    if request.output_config and request.output_config.effort:
        names += [] if EFFORT in template.kwargs_names else ["output_config.effort"]
    thinks = any(block.thinking for turn in request.messages for block in turn.blocks)
    if thinks and not template.reads("reasoning_content"):
        names.append("messages[].content[].thinking")
    return names


def tool_use_id(call_id: str) -> str:
    """Return a call's id as clients of this API know it."""
    return TOOL_USE_PREFIX + call_id.removeprefix(CALL_PREFIX)


def _call_id(tool_use_id: str) -> str:
    """Return it as it was made here, so that a dialogue that comes back is the same text."""
    if tool_use_id.startswith(TOOL_USE_PREFIX):
        return CALL_PREFIX + tool_use_id.removeprefix(TOOL_USE_PREFIX)
    return tool_use_id


def _goes_on(request: PromptRequest) -> bool:
    """Whether the answer goes on from the last turn. Raises InvalidFieldError where it cannot."""
    last = request.messages[-1]
    if last.role != "assistant":
        return False
    if any(block.type == "tool_use" for block in last.blocks):
        raise InvalidFieldError(
            "messages: ends with calls of tools, from which no answer can go on; send their"
            " results, or leave the turn out",
            param="messages",
        )
    return True


def _system_texts(request: PromptRequest) -> Iterable[str]:
    """Yield the system texts, those among the turns last."""
    yield "\n\n".join(_without_billing([block.text for block in request.system or ()]))
    for turn in request.messages:
        if turn.role == "system":
            yield "\n".join(_without_billing(_texts(turn)))


def _without_billing(blocks: Iterable[str]) -> Iterator[str]:
    """Yield blocks of a system text without the line, and without those that hold no more."""
    for block in blocks:
        rest = block.partition("\n")[2].lstrip("\n") if block.startswith(BILLING) else block
        if rest or not block:
            yield rest


def _text_of(texts: Sequence[TextBlock] | None) -> str:
    return "\n".join(text.text for text in texts or ())


def _joined(turn: Turn) -> str:
    return "\n".join(_texts(turn))


def _texts(turn: Turn) -> Iterator[str]:
    return (block.text or "" for block in turn.blocks if block.type == "text")


def _check_results(turn: Turn, number: int, names: Mapping[str, str]) -> None:
    for place, block in enumerate(turn.blocks):
        if block.type == "tool_result" and block.tool_use_id not in names:
            param = f"messages.{number}.content.{place}.tool_use_id"
            raise InvalidFieldError(
                f"{param}: no call before it has this id; send the turn that called, too",
                param=param,
            )


def _add_users(messages: list[dict[str, Any]], turn: Turn, names: Mapping[str, str]) -> None:
    """Add the results of tools that a user's turn holds, then its texts."""
    results = [block for block in turn.blocks if block.type == "tool_result"]
    messages += [_result(block, names) for block in results]
    if len(results) < len(turn.blocks) or not results:
        _add(messages, "user", content=[_joined(turn)])


def _result(block: Block, names: Mapping[str, str]) -> dict[str, Any]:
    asked = block.tool_use_id or ""
    text = _text_of(block.content)
    return {
        "role": "tool",
        "tool_call_id": _call_id(asked),
        "name": names[asked],
        "content": (FAILED + text).rstrip() if block.is_error else text,
    }


def _add_assistants(messages: list[dict[str, Any]], turn: Turn) -> None:
    _add(
        messages,
        "assistant",
        content=[_joined(turn)],
        reasoning_content=[block.thinking for block in turn.blocks if block.thinking],
        tool_calls=[_call(block) for block in turn.blocks if block.type == "tool_use"],
    )


def _call(block: Block) -> ToolCall:
    # As Python writes it, which is also how arguments are made here.
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return ToolCall(_call_id(block.id or ""), block.name or "", arguments)


def _add(messages: list[dict[str, Any]], role: str, **said: list[Any]) -> None:
    """Add lists of what was said; to the last message, where that is of the same role."""
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role})
    last = messages[-1]
    for name, more in said.items():
        last.setdefault(name, []).extend(more)


def _told(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its texts joined: once, as there may be thousands."""
    if message["role"] == "tool":
        return dict(message)
    told = {name: value for name, value in message.items() if value}
    for name in ("content", "reasoning_content"):
        if name in told:
            told[name] = "\n".join(filter(None, told[name]))
    return told


def _kwargs(request: PromptRequest, template: ChatTemplate) -> dict[str, KwargValue]:
    kwargs = _thinking_kwargs(request.thinking, template)
    effort = request.output_config and request.output_config.effort
    return kwargs | ({EFFORT: effort} if effort and EFFORT in template.kwargs_names else {})


def _thinking_kwargs(thinking: Thinking | None, template: ChatTemplate) -> dict[str, KwargValue]:
    """Return what a template is told of thinking; nothing where it has no switch for it."""
    if thinking is None or thinking.type == "between_tools":
        return {}
    switch = next((name for name in THINKING_SWITCHES if name in template.kwargs_names), None)
    return {} if switch is None else {switch: thinking.type != "disabled"}
