"""Dialogues to token ids, by the template that the variant was trained on.

Which template that is, `template_choice` decides. Rendering happens in `sandbox`, what users typed
is held together in `dialogue` and kept apart from control pieces in `control_pieces`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
from service.text.template_traits import TemplateTraits, ends_open, find_traits
from service.text.text_bound import TextBound
from service.text.tool_turns import CallStyle, one_call_each, written_tools, written_turns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts
    from service.text.tool_turns import ToolLike, Turn


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


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A dialogue as the model sees it."""

    token_ids: list[int]
    opens_reasoning: bool  # it ends within the model's thoughts


class ChatTemplate:
    """Renders dialogues for one tokenizer; may be used from several threads."""

    name: str  # whose template it is, for people
    origin: TemplateOrigin
    source: str  # Jinja
    source_sha256: str
    stop_token_ids: frozenset[int]  # what the template writes right after an assistant's turn
    kwargs_names: frozenset[str]  # what `RenderOptions.template_kwargs` may set
    traits: TemplateTraits

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
        self.source = source
        self.source_sha256 = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
        self._pieces = ControlPieces.of(tokenizer)
        self._bound = TextBound.of(tokenizer)
        self._leading = leading_ids(backend)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._special_tokens = _json_values(tokenizer.special_tokens_map)
        self._sandbox = TemplateSandbox(source)
        self.kwargs_names = kwargs_among(self._sandbox.names, self._special_tokens)
        added = tokenizer.added_tokens_encoder
        self.traits = find_traits(self._render, source, self._pieces, vocabulary=added)
        self.stop_token_ids = self.traits.turn_end_ids

    @property
    def takes_tools(self) -> bool:
        """Whether it tells the model of tools; one that does not is given none."""
        return self.traits.takes_tools

    @property
    def takes_tool_turns(self) -> bool:
        """Whether it writes calls and their results; one that does not is given neither."""
        return self.traits.call_style is not None

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """Return what the model's thoughts stand between; None where nothing tells of any."""
        return self.traits.reasoning_marks

    @property
    def opens_reasoning(self) -> bool:
        """Whether its prompts end within the model's thoughts, unless an option says otherwise."""
        return self.traits.opens_reasoning

    def reads(self, name: str) -> bool:
        """Whether it reads a variable, such as "documents", or a message's field of `EXTRAS`.

        What it does not read has no effect.
        """
        return name in self.traits.extras or name in self._sandbox.names

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions = AS_USUAL,
        tools: Sequence[ToolLike] = (),
    ) -> list[int]:
        """Render a dialogue, as token ids with exactly one BOS; by default up to the answer.

        Raises InvalidMessagesError if the messages or their order don't fit,
        InvalidTemplateOptionsError if the options or tools don't, TemplateFailedError if the
        template breaks on them, TextTooLongError.
        """
        return self.render_prompt(messages, options, tools).token_ids

    def render_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions = AS_USUAL,
        tools: Sequence[ToolLike] = (),
    ) -> RenderedPrompt:
        """Do the same, and tell how the answer begins."""
        text, disguise = self._render_disguised(messages, options, tools)
        marks = self.reasoning_marks
        return RenderedPrompt(
            token_ids=self._with_one_bos(self._encode(text, disguise, options)),
            opens_reasoning=marks is not None and _is_within(marks, text, messages, options),
        )

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions = AS_USUAL,
        tools: Sequence[ToolLike] = (),
    ) -> str:
        """Render a dialogue as text for people; typed control pieces look like real ones in it."""
        text, disguise = self._render_disguised(messages, options, tools)
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
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions,
        tools: Sequence[ToolLike],
    ) -> tuple[str, Disguise | None]:
        dialogue = self._read(messages, options, tools)
        # Each once: schemas of many tools repeat their words.
        disguise = self._pieces.disguise_for([*dict.fromkeys(dialogue.texts())], self.source)
        hidden = dialogue.with_texts(disguise.put_on) if disguise else dialogue
        if options.continue_final_message:
            return self._render_unfinished(hidden), disguise
        return self._render(hidden, add_generation_prompt=options.add_generation_prompt), disguise

    def _read(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: RenderOptions,
        tools: Sequence[ToolLike],
    ) -> Dialogue:
        if tools and not self.takes_tools:
            raise InvalidTemplateOptionsError(
                "tools: this model's chat template tells the model of none", param="tools"
            )
        return Dialogue(
            _known_turns(checked_turns(messages), self.traits),
            checked_kwargs(options.template_kwargs, self.kwargs_names),
            checked_documents(options.documents, are_read="documents" in self._sandbox.names),
            written_tools(tools) or None,
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
        if "tool_calls" in dialogue.turns[-1]:
            raise InvalidTemplateOptionsError(
                "continue_final_message continues a text, but the last message calls tools; send"
                " their results, or leave it out",
                param="continue_final_message",
            )
        if dialogue.says_nothing_last:
            return self._render(dialogue.without_last(), add_generation_prompt=True)
        marked, mark = mark_end(dialogue, self.source)
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
            **dialogue.variables(),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._sandbox.render(variables, num_chars=dialogue.num_chars())
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


def _known_turns(turns: Sequence[Turn], traits: TemplateTraits) -> list[Turn]:
    """Write turns as the template takes them, without what it does not read."""
    for n, turn in enumerate(turns):
        if traits.call_style is None and (turn["role"] == "tool" or "tool_calls" in turn):
            raise InvalidMessagesError(
                f"messages[{n}] is a call of a tool or its result, of which this model's chat"
                " template writes nothing"
            )
    dropped = set(EXTRAS) - traits.extras
    known = [
        {key: value for key, value in turn.items() if key not in dropped or turn["role"] == "tool"}
        for turn in turns
    ]
    if not traits.takes_parallel_calls:
        known = one_call_each(known)
    return written_turns(known, traits.call_style or CallStyle())


def _is_within(
    marks: tuple[str, str],
    text: str,
    messages: Sequence[Mapping[str, Any]],
    options: RenderOptions,
) -> bool:
    """Whether a prompt ends within the model's thoughts.

    Where an answer goes on, that is for its own text to say.
    """
    begun = checked_turns(messages[-1:])[0]["content"] if options.continue_final_message else ""
    if begun:
        return begun.rfind(marks[0]) > begun.rfind(marks[1])
    is_asked = options.add_generation_prompt or options.continue_final_message
    return is_asked and ends_open(text, marks)


def _json_values(special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Give special tokens as templates know them: by name, as text or a list of texts."""
    return {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in special_tokens.items()
    }
