"""Dialogues to token ids, by the template that the variant was trained on.

Which template that is, `template_choice` decides. Rendering happens in `sandbox`, what users typed
is held together in `dialogue` and kept apart from control pieces in `control_pieces`.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from service.text.backend import fast_backend, leading_ids, without_leading
from service.text.control_pieces import ControlPieces, Disguise
from service.text.dialogue import Dialogue, cut_at_mark, mark_end
from service.text.encoding import last_ids
from service.text.errors import (
    ChatNotSupportedError,
    InvalidMessagesError,
    InvalidTemplateOptionsError,
    TemplateFailedError,
    TemplateSettingError,
)
from service.text.messages import EXTRAS, checked_turns, out_of_order
from service.text.render_options import (
    AS_USUAL,
    RenderOptions,
    checked_documents,
    checked_kwargs,
    kwargs_among,
)
from service.text.sandbox import TemplateSandbox
from service.text.template_choice import TemplateOrigin, choose_template
from service.text.text_bound import TextBound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts

_PROBE_ANSWER = "probe answer"
_PROBE = (
    {"role": "user", "content": "probe question"},
    {"role": "assistant", "content": _PROBE_ANSWER},
    {"role": "user", "content": "probe question"},
)


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, facts: VariantFacts, asked: str | None = None
) -> ChatTemplate:
    """Choose the variant's chat template and make it ready; asked: the setting `chat_template`.

    Raises ChatNotSupportedError, whose message says why the variant can't chat and what it can do;
    TemplateSettingError where what the operator asked for does not work.
    """
    chosen = choose_template(tokenizer, facts, asked)
    try:
        return ChatTemplate(tokenizer, name=chosen.name, source=chosen.source, origin=chosen.origin)
    except TemplateFailedError as error:
        if chosen.is_operators_choice:
            raise TemplateSettingError(f"chat_template is {asked!r}, but {error}") from error
        raise ChatNotSupportedError(
            f"{facts.repo} cannot chat: {error}. Use /v1/completions until then, or give it"
            " another template by the setting chat_template."
        ) from error


class ChatTemplate:
    """Renders dialogues for one tokenizer; may be used from several threads."""

    name: str  # whose template it is, for people
    origin: TemplateOrigin
    source_sha256: str
    stop_token_ids: frozenset[int]  # what the template writes right after an assistant's turn
    kwargs_names: frozenset[str]  # what `RenderOptions.template_kwargs` may set

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        source: str,
        origin: TemplateOrigin = TemplateOrigin.TOKENIZER,
    ) -> None:
        """Start the template; raises TemplateFailedError if it doesn't work at all."""
        backend = fast_backend(tokenizer)
        self.name = name
        self.origin = origin
        self.source_sha256 = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
        self._source = source
        self._pieces = ControlPieces.of(tokenizer)
        self._bound = TextBound.of(tokenizer)
        self._leading = leading_ids(backend)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._special_tokens = _json_values(tokenizer.special_tokens_map)
        self._sandbox = TemplateSandbox(source)
        self.kwargs_names = kwargs_among(self._sandbox.names, self._special_tokens)
        self.stop_token_ids = self._find_turn_end()
        self._extras = self._find_extras()

    def reads(self, name: str) -> bool:
        """Whether it reads a variable, such as "documents", or a message's field of `EXTRAS`.

        What it does not read has no effect.
        """
        return name in self._extras or name in self._sandbox.names

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: RenderOptions = AS_USUAL
    ) -> list[int]:
        """Render a dialogue, as token ids with exactly one BOS; by default up to the answer.

        Raises InvalidMessagesError if the messages or their order don't fit,
        InvalidTemplateOptionsError if the options don't, TemplateFailedError if the template breaks
        on them, TextTooLongError.
        """
        text, disguise = self._render_disguised(messages, options)
        return self._with_one_bos(self._encode(text, disguise, options))

    def render_text(
        self, messages: Sequence[Mapping[str, Any]], options: RenderOptions = AS_USUAL
    ) -> str:
        """Render a dialogue as text for people; typed control pieces look like real ones in it."""
        text, disguise = self._render_disguised(messages, options)
        return disguise.take_off(text) if disguise else text

    def close(self) -> None:
        """End the template's process."""
        self._sandbox.close()

    def _encode(self, text: str, disguise: Disguise | None, options: RenderOptions) -> list[int]:
        if options.keep_last is not None:
            encode = partial(self._pieces.encode, disguise=disguise)
            return last_ids(encode, text, options.keep_last)[0]
        if options.most_tokens is not None:
            typed = disguise.take_off(text) if disguise else text
            self._bound.require_short(typed, options.most_tokens)
        return self._pieces.encode(text, disguise, options.most_tokens)

    def _render_disguised(
        self, messages: Sequence[Mapping[str, Any]], options: RenderOptions
    ) -> tuple[str, Disguise | None]:
        dialogue = self._read(messages, options)
        disguise = self._pieces.disguise_for(list(dialogue.texts()), self._source)
        hidden = dialogue.with_texts(disguise.put_on) if disguise else dialogue
        if options.continue_final_message:
            return self._render_unfinished(hidden), disguise
        return self._render(hidden, add_generation_prompt=options.add_generation_prompt), disguise

    def _read(self, messages: Sequence[Mapping[str, Any]], options: RenderOptions) -> Dialogue:
        dropped = set(EXTRAS) - self._extras
        turns = [
            {key: value for key, value in turn.items() if key not in dropped}
            for turn in checked_turns(messages)
        ]
        return Dialogue(
            turns,
            checked_kwargs(options.template_kwargs, self.kwargs_names),
            checked_documents(options.documents, are_read="documents" in self._sandbox.names),
        )

    def _render_unfinished(self, dialogue: Dialogue) -> str:
        """Render up to the end of the last message, which the model shall continue.

        An empty one gives nothing to continue, so the model begins as it does without. That
        matters where templates write a space between: behind a lone one no word begins.
        """
        role = dialogue.turns[-1]["role"]
        if role != "assistant":
            raise InvalidTemplateOptionsError(
                "continue_final_message continues an answer, but messages ends with role"
                f" {role!r}; end with the beginning of the assistant's, or leave it out",
                param="continue_final_message",
            )
        if dialogue.says_nothing_last:
            return self._render(dialogue.without_last(), add_generation_prompt=True)
        marked, mark = mark_end(dialogue, self._source)
        try:
            text = self._render(marked, add_generation_prompt=False)
        except InvalidMessagesError as error:
            if out_of_order(dialogue.turns, last="assistant"):
                raise
            raise InvalidMessagesError(
                f"{error}. It takes no dialog that ends with an answer, so none can be continued;"
                " leave continue_final_message out, or use /v1/completions"
            ) from error
        return cut_at_mark(text, mark)

    def _render(self, dialogue: Dialogue, *, add_generation_prompt: bool) -> str:
        variables = {
            **self._special_tokens,
            "tools": None,
            **dialogue.variables(),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._sandbox.render(variables, num_chars=sum(map(len, dialogue.texts())))
        except InvalidMessagesError as error:
            last = "user" if add_generation_prompt else dialogue.turns[-1]["role"]
            place = out_of_order(dialogue.turns, last=last)
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
        text = self._render_probe()
        if text is None:
            return frozenset()
        _, found, rest = text.partition(_PROBE_ANSWER)
        end = self._pieces.id_at(rest.lstrip()) if found else None
        return frozenset() if end is None else frozenset({end})

    def _find_extras(self) -> frozenset[str]:
        """See which fields of messages the template reads, beside role and text.

        Reasoning is written for some turns only, so what the source mentions counts. A "name" is
        mentioned wherever tools are, so it is tried.
        """
        mentioned = {name for name in EXTRAS if re.search(rf"\b{name}\b", self._source)}
        if "name" in mentioned and self._render_probe() == self._render_probe(name="probe_name"):
            mentioned.remove("name")
        return frozenset(mentioned)

    def _render_probe(self, **fields: str) -> str | None:
        """Render an ordinary dialogue; None where the template refuses it."""
        try:
            dialogue = Dialogue([{**turn, **fields} for turn in _PROBE])
            return self._render(dialogue, add_generation_prompt=True)
        except InvalidMessagesError:
            return None


def _json_values(special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Give special tokens as templates know them: by name, as text or a list of texts."""
    return {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in special_tokens.items()
    }
