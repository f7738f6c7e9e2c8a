"""Dialogs to token ids, by the template that the variant was trained on.

The tokenizer's own template counts; `families` helps where there is none. Rendering happens in
`sandbox`, what users typed is kept apart from control pieces in `control_pieces`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.text.backend import fast_backend, leading_ids, without_leading
from service.text.control_pieces import ControlPieces, Disguise
from service.text.errors import (
    ChatNotSupportedError,
    InvalidMessagesError,
    TemplateFailedError,
)
from service.text.families import decide_family
from service.text.messages import checked_turns, out_of_order
from service.text.sandbox import TemplateSandbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts

_OWN_TEMPLATE = "the tokenizer's own"
_PROBE_ANSWER = "probe answer"
_PROBE = (
    {"role": "user", "content": "probe question"},
    {"role": "assistant", "content": _PROBE_ANSWER},
    {"role": "user", "content": "probe question"},
)


def resolve_chat_template(tokenizer: PreTrainedTokenizerBase, facts: VariantFacts) -> ChatTemplate:
    """Choose the variant's chat template and make it ready.

    Raises ChatNotSupportedError, whose message says why the variant can't chat and what it can do.
    """
    source = _own_template(tokenizer)
    if source is not None:
        name = _OWN_TEMPLATE
    else:
        family = decide_family(facts)
        name, source = family.name, family.template
    try:
        return ChatTemplate(tokenizer, name=name, source=source)
    except TemplateFailedError as error:
        raise ChatNotSupportedError(
            f"{facts.repo} cannot chat: {error}. Use /v1/completions until then."
        ) from error


class ChatTemplate:
    """Renders dialogs for one tokenizer; may be used from several threads."""

    name: str  # whose template it is, for people
    stop_token_ids: frozenset[int]  # what the template writes right after an assistant's turn

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, source: str) -> None:
        """Start the template; raises TemplateFailedError if it doesn't work at all."""
        backend = fast_backend(tokenizer)
        self.name = name
        self._source = source
        self._pieces = ControlPieces.of(tokenizer)
        self._leading = leading_ids(backend)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._special_tokens = _json_values(tokenizer.special_tokens_map)
        self._sandbox = TemplateSandbox(source)
        self.stop_token_ids = self._find_turn_end()

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Render a dialog up to where the assistant speaks next, as token ids with exactly one BOS.

        Raises InvalidMessagesError if the messages or their order don't fit, TemplateFailedError if
        the template breaks on them.
        """
        turns = checked_turns(messages)
        disguise = self._disguise(turns)
        ids = self._pieces.encode(self._render(turns, disguise), disguise)
        return self._with_one_bos(ids)

    def render_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render a dialog as text for people; typed control pieces look like real ones in it."""
        turns = checked_turns(messages)
        disguise = self._disguise(turns)
        text = self._render(turns, disguise)
        return disguise.take_off(text) if disguise else text

    def close(self) -> None:
        """End the template's process."""
        self._sandbox.close()

    def _disguise(self, turns: list[dict[str, str]]) -> Disguise | None:
        return self._pieces.disguise_for([turn["content"] for turn in turns], self._source)

    def _render(self, turns: list[dict[str, str]], disguise: Disguise | None) -> str:
        contents = [turn["content"] for turn in turns]
        hidden = [disguise.put_on(content) for content in contents] if disguise else contents
        variables = {
            **self._special_tokens,
            "messages": [
                {"role": turn["role"], "content": content}
                for turn, content in zip(turns, hidden, strict=True)
            ],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._sandbox.render(variables, num_chars=sum(map(len, contents)))
        except InvalidMessagesError as error:
            place = out_of_order(turns)
            raise InvalidMessagesError(f"{error}; {place}" if place else str(error)) from error

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Begin with what the tokenizer puts before texts, once, also if the template wrote it."""
        if self._leading:
            return self._leading + without_leading(ids, self._leading)
        if self._bos_id is not None and ids[:1] == [self._bos_id]:
            return [self._bos_id, *without_leading(ids, [self._bos_id])]
        return ids

    def _find_turn_end(self) -> frozenset[int]:
        """See which control piece the template writes behind an answer; none if it writes text."""
        try:
            text = self._render(checked_turns(_PROBE), disguise=None)
        except InvalidMessagesError:
            return frozenset()
        _, found, rest = text.partition(_PROBE_ANSWER)
        end = self._pieces.id_at(rest.lstrip()) if found else None
        return frozenset() if end is None else frozenset({end})


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the tokenizer's template; of several named ones the default."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def _json_values(special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Give special tokens as templates know them: by name, as text or a list of texts."""
    return {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in special_tokens.items()
    }
