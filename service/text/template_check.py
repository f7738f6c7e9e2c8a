"""Reasons to doubt a chat template, found when a variant is loaded.

Renders small dialogues with the template in use, and looks at what it wrote, at what the template
of the variant's family writes, and at the block that the model card shows. Judges and warns; what
is rendered stays as it is, and which template is used is decided in `template_choice`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from service.text.backend import fast_backend, leading_ids
from service.text.encoding import encode_text
from service.text.errors import (
    BaseModelError,
    ChatNotSupportedError,
    InvalidMessagesError,
    TextError,
)
from service.text.families import CHATML, FAMILIES, decide_family
from service.text.render_options import AS_USUAL, RenderOptions
from service.text.sandbox import TemplateSandbox
from service.text.template_choice import TemplateOrigin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts
    from service.text.families import TemplateFamily
    from service.text.templates import ChatTemplate

# Words that no template writes by itself, none of which is a part of another.
_SYSTEM, _USER, _ANSWER, _NEXT = "wear gloves", "how warm is it", "nine degrees", "and tomorrow"
_CARD_PROMPT = re.compile(r"\{(?:prompt|user_message|instruction)\}")
_CARD_SYSTEM = re.compile(r"\{(?:system_message|system_prompt|system)\}")
_MARK = re.compile(r"<[^<>]*>")
_MAX_SHOWN = 60  # characters
_MEND = "give a right one by the setting chat_template"
_OPEN = RenderOptions(add_generation_prompt=False)


@dataclass(frozen=True, slots=True)
class TemplateFinding:
    """One reason to doubt a template."""

    code: str  # for programs
    sentence: str  # what was found, what was expected, what to do


def check_template(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, facts: VariantFacts
) -> tuple[TemplateFinding, ...]:
    """Look at the template that a variant uses. Takes some 10 ms, a family's 0.1 s more."""
    try:
        seen = _Renderings(
            lambda turns, is_asked: template.render_text(turns, AS_USUAL if is_asked else _OPEN)
        )
        findings = [*_about_itself(seen, template), *_about_bos(seen, template, tokenizer)]
        if (family := _reference(facts)) is not None and family.name != template.name:
            findings += _about_family(seen, family, tokenizer)
        findings += _about_card(seen, template, tokenizer, facts)
    except TextError as error:
        return (
            TemplateFinding(
                "fails",
                f"rendering a dialog of a few words failed: {error}; chats are likely to fail, too:"
                f" {_MEND}",
            ),
        )
    return tuple(findings)


def check_refusal(facts: VariantFacts) -> tuple[TemplateFinding, ...]:
    """Look at the model card of a variant that cannot chat."""
    block = facts.model_card and facts.model_card.template_text
    if not block or not _CARD_PROMPT.search(block):
        return ()
    try:
        decide_family(facts)
    except BaseModelError:
        return (
            TemplateFinding(
                "card_of_base_model",
                f"the model card shows the prompt template {_shown(block)}, but this is a base"
                " model, which was not trained on one; use completions, and do not follow the card",
            ),
        )
    except ChatNotSupportedError:
        return ()
    return ()


class _Renderings:
    """What a template makes of small dialogues; None where it refuses one.

    render: of turns, and whether the assistant is asked to speak next.
    """

    def __init__(self, render: Callable[[list[dict[str, str]], bool], str]) -> None:
        self._render = render
        asked, answered = _turn("user", _USER), _turn("assistant", _ANSWER)
        system, later = _turn("system", _SYSTEM), _turn("user", _NEXT)
        self.first = self._text(asked)
        self.first_open = self._text(asked, is_asked=False)
        self.later = self._text(asked, answered, later)
        self.with_system = self._text(system, asked)
        self.full = self._text(system, asked, answered, later)

    def _text(self, *turns: dict[str, str], is_asked: bool = True) -> str | None:
        try:
            return self._render(list(turns), is_asked)
        except InvalidMessagesError:
            return None


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# What it wrote, by itself


def _about_itself(seen: _Renderings, template: ChatTemplate) -> Iterator[TemplateFinding]:
    if seen.first is None:
        yield TemplateFinding(
            "refuses_dialog",
            f"the chat template ({template.name}) refuses a dialog of one user's message, which"
            f" every model that chats takes; {_MEND}",
        )
    if seen.with_system is not None and _SYSTEM not in seen.with_system:
        yield TemplateFinding(
            "lost_system",
            f"the chat template ({template.name}) leaves system messages out without refusing"
            f" them, so instructions would be lost unnoticed; put them into the user's first"
            f" message, or {_MEND}",
        )
    yield from _about_texts(seen, template)
    yield from _about_final_turn(seen, template)


def _about_texts(seen: _Renderings, template: ChatTemplate) -> Iterator[TemplateFinding]:
    """See whether each message is written once."""
    roles = {_USER: "user's first", _ANSWER: "assistant's", _NEXT: "user's last"}
    text = seen.later
    if text is None:
        text, roles = seen.first or _USER, {_USER: "user's"}
    times = {role: text.count(content) for content, role in roles.items()}
    lost = [role for role, count in times.items() if count == 0]
    doubled = [role for role, count in times.items() if count > 1]
    if lost:
        yield TemplateFinding(
            "lost_text",
            f"the chat template ({template.name}) leaves out the {' and the '.join(lost)} message,"
            f" if it is sent as text; {_MEND}",
        )
    if doubled:
        yield TemplateFinding(
            "doubled_text",
            f"the chat template ({template.name}) writes the {' and the '.join(doubled)} message"
            f" more than once; {_MEND}",
        )


def _about_final_turn(seen: _Renderings, template: ChatTemplate) -> Iterator[TemplateFinding]:
    """Compare how an answer begins in a dialogue with how it is asked for at the end.

    A template may open it further ("<think>"), or less far (gpt-oss's channel is the model's to
    choose), or in another mode, but must write something towards it beyond the user's turn.
    """
    if seen.first is None or seen.later is None:
        return
    if seen.first.count(_USER) != 1 or seen.later.count(_USER) != 1 or _ANSWER not in seen.later:
        return  # lost or doubled, which is told by itself
    opening = _between(seen.later, _USER, _ANSWER).rstrip()
    end = _between(seen.first, _USER).rstrip()
    closed = _between(seen.first_open or "", _USER).rstrip()
    if end.startswith(opening) or _open_alike(opening, end, closed):
        return
    yield TemplateFinding(
        "wrong_final_turn",
        f"the chat template ({template.name}) ends a dialog with {_shown(end)}, but begins answers"
        f" with {_shown(opening)}, so the model is not told that it is its turn; {_MEND}",
    )


def _open_alike(opening: str, end: str, closed: str) -> bool:
    """Whether both open the same turn behind the user's, with only marks where they part.

    closed: the end of the user's turn, where no answer is asked for.
    """
    if end == closed:  # one that always opens the answer, or never does; turns end with one mark
        rest = opening.removeprefix(end)
        return rest != opening and len(_MARK.findall(end)) > 1 and _is_marks(rest)
    if opening.startswith(end):
        return True
    common = opening[: _place_of_difference(opening, end)]
    common = common[: common.rfind(">") + 1]  # in no mark's middle
    is_beyond = len(common) > len(closed)
    return is_beyond and all(_is_marks(text.removeprefix(common)) for text in (opening, end))


def _is_marks(text: str) -> bool:
    return not _MARK.sub("", text).strip()


def _about_bos(
    seen: _Renderings, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TemplateFinding]:
    """See how often the template itself writes BOS; what is sent to the engine has it once."""
    text = seen.first or seen.later
    if text is None or template.origin == TemplateOrigin.FAMILY:
        return
    backend = fast_backend(tokenizer)
    leading = leading_ids(backend)
    bos_id = leading[0] if leading else tokenizer.bos_token_id
    if bos_id is None:
        return
    ids = encode_text(backend, text)
    written = len(list(takewhile(lambda token_id: token_id == bos_id, ids)))
    bos = backend.id_to_token(bos_id)
    if written > 1:
        yield TemplateFinding(
            "double_bos",
            f"the chat template ({template.name}) begins with {written} times {bos}, once was"
            " expected; it is sent once here, but other servers may send all: mend the template",
        )
    if written == 0 and leading:
        yield TemplateFinding(
            "missing_bos",
            f"the chat template ({template.name}) writes no {bos}, with which the tokenizer begins"
            " every text; it is put before dialogs here, as before texts, so nothing need be done;"
            " other servers may leave it out. Where the model was trained on dialogs without it,"
            " set the tokenizer's add_bos_token to false, or give a chat_template that fits",
        )


# Against the family


def _reference(facts: VariantFacts) -> TemplateFamily | None:
    """Return the family whose template the variant should follow, if it is known."""
    try:
        return decide_family(facts)
    except ChatNotSupportedError:
        return None


def _about_family(
    seen: _Renderings, family: TemplateFamily, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TemplateFinding]:
    if not family.has_one_form:
        return
    expected = _renderings_of(family, tokenizer)
    # A default system text may be added to dialogues without one, so the fullest dialogue counts.
    for found, wanted in ((seen.full, expected.full), (seen.later, expected.later)):
        if found is not None and wanted is not None:
            break
    else:
        return
    if _ids(found, tokenizer) == _ids(wanted, tokenizer):
        return
    if family is CHATML and not any(piece in found for piece in CHATML.needed_pieces):
        return  # many vocabularies have these pieces, and models with them other forms
    shown, expected_there = _excerpts(found, wanted)
    slug = next(slug for slug, one in FAMILIES.items() if one is family)
    yield TemplateFinding(
        "differs_from_family",
        f"the chat template in use writes {shown} where that of the family ({family.name}) has"
        f" {expected_there}; the one in use counts: where answers are poor, try the setting"
        f" chat_template with {slug!r}",
    )


def _renderings_of(family: TemplateFamily, tokenizer: PreTrainedTokenizerBase) -> _Renderings:
    """Render without a `ChatTemplate`, which takes 1 s to prepare for typed control pieces."""
    variables = {
        "bos_token": str(tokenizer.bos_token or ""),
        "eos_token": str(tokenizer.eos_token or ""),
    }
    sandbox = TemplateSandbox(family.template)

    def render(turns: list[dict[str, str]], is_asked: bool) -> str:
        own = {"messages": turns, "add_generation_prompt": is_asked}
        return sandbox.render(variables | own, num_chars=0)

    try:
        return _Renderings(render)
    finally:
        sandbox.close()


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a rendered dialogue without what stands before every text."""
    ids = encode_text(fast_backend(tokenizer), text)
    return ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids


# Against the model card


def _about_card(
    seen: _Renderings,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    facts: VariantFacts,
) -> Iterator[TemplateFinding]:
    """Compare the marks around the user's text; white space apart, which cards lose.

    Cards may show a default system text that the template leaves to the caller, or the reverse, and
    a task as the beginning of the user's text.
    """
    block = (facts.model_card and facts.model_card.template_text) or ""
    has_system = _CARD_SYSTEM.search(block) is not None
    rendered = seen.with_system if has_system else seen.first
    parts = _CARD_PROMPT.split(_CARD_SYSTEM.sub(_SYSTEM, block))
    if rendered is None or len(parts) != 2 or _USER not in rendered:
        return
    bos = str(tokenizer.bos_token or "")
    before, after = (_without_spaces(part.strip().removeprefix(bos)) for part in parts)
    own_before, own_after = (
        _without_spaces(part.removeprefix(bos)) for part in rendered.split(_USER, 1)
    )
    if not before and not after:
        return  # "{prompt}": no template at all
    begins_alike = any(
        (
            before.startswith(own_before),
            before.endswith(own_before),
            own_before.endswith(before),
        )
    )
    if begins_alike and after == own_after:
        return
    place = "after" if begins_alike else "before"
    shown, wrote = _excerpts(*((after, own_after) if begins_alike else (before, own_before)))
    yield TemplateFinding(
        "card_differs",
        f"the model card shows {shown} {place} the user's text, the chat template in use writes"
        f" {wrote} there, white space apart; the one in use ({template.name}) counts: write"
        " prompts for completions by it, not by the card",
    )


def _without_spaces(text: str) -> str:
    return "".join(text.replace(_SYSTEM, "{system_message}").split())


def _between(text: str, start: str, end: str | None = None) -> str:
    """Return what stands between two texts, or behind the first; nothing where it is missing."""
    rest = text.partition(start)[2]
    return rest if end is None else rest.partition(end)[0]


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Return two texts, long ones from a little before the place where they part."""
    place = _place_of_difference(one, other)
    start = max(0, place - 12) if max(len(one), len(other)) > _MAX_SHOWN else 0
    return _shown(one[start:]), _shown(other[start:])


def _place_of_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…")
