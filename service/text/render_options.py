"""What a request may say of how its dialogue is rendered, and whether a template has a use for it.

Keyword arguments are an allow-list: names that the template itself reads, and that are not ours to
fill. What shape the JSON had is the API's business; what becomes of the values is `templates`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.text.errors import InvalidMessagesError, InvalidTemplateOptionsError
from service.text.messages import well_formed

KwargValue = bool | str | int | float

MAX_KWARG_CHARS = 4096  # a date, a style, a short text; longer ones are messages
MAX_KWARG_NUMBER = 2**53  # beyond it, JSON's readers do not agree on a number
# Filled in by us or by the tokenizer, or known to Jinja itself.
_RESERVED = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token"),
        *("cls_token", "mask_token", "additional_special_tokens", "raise_exception"),
        *("strftime_now", "self", "super", "loop", "caller", "varargs", "kwargs"),
    }
)


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How a dialogue is rendered."""

    add_generation_prompt: bool = True  # end with the opening of the assistant's turn
    # End with the last message, which is the assistant's, as it stands; no generation prompt then.
    continue_final_message: bool = False
    template_kwargs: Mapping[str, KwargValue] = field(default_factory=dict)
    documents: Sequence[Mapping[str, str]] | None = None  # for templates that cite them
    most_tokens: int | None = None  # a dialogue of more is refused, if it can be before it is made
    keep_last: int | None = None  # so many of its last tokens are wanted alone


AS_USUAL = RenderOptions()


def kwargs_among(variables: frozenset[str], special_tokens: Mapping[str, object]) -> frozenset[str]:
    """Return which of the variables that a template reads a request may set."""
    return variables - _RESERVED - special_tokens.keys()


def checked_kwargs(
    kwargs: Mapping[str, KwargValue], taken: frozenset[str]
) -> dict[str, KwargValue]:
    """Return the keyword arguments; null counts as absent.

    taken: names that the template takes. Raises InvalidTemplateOptionsError.
    """
    unknown = sorted(kwargs.keys() - taken)
    if unknown:
        names = ", ".join(repr(str(name)[:50]) for name in unknown[:5])
        known = ", ".join(sorted(taken)[:50]) or "none"
        raise InvalidTemplateOptionsError(
            f"chat_template_kwargs has {names}, which this model's chat template does not take;"
            f" it takes: {known}",
            param="chat_template_kwargs",
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    return {name: _checked_value(name, value) for name, value in given.items()}


def checked_documents(
    documents: Sequence[Mapping[str, str]] | None, *, are_read: bool
) -> list[dict[str, str]] | None:
    """Return the documents; none where there are none. Raises InvalidTemplateOptionsError."""
    if not documents:
        return None
    if not are_read:
        raise InvalidTemplateOptionsError(
            "documents: this model's chat template does not use them, so they would have no effect;"
            " put their texts into a message",
            param="documents",
        )
    return [_checked_document(document, f"documents[{n}]") for n, document in enumerate(documents)]


def _checked_value(name: str, value: object) -> KwargValue:
    where, param = f"chat_template_kwargs.{name}", "chat_template_kwargs"
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) <= MAX_KWARG_CHARS:
            return _well_formed(value, where, param)
        found = f"has {len(value)} characters; at most {MAX_KWARG_CHARS} are taken"
    elif isinstance(value, int | float):
        if abs(value) <= MAX_KWARG_NUMBER:  # not so for NaN
            return value
        found = f"is out of range; numbers from -{MAX_KWARG_NUMBER} to {MAX_KWARG_NUMBER} are taken"
    else:
        found = f"is of type {type(value).__name__}; send a boolean, a string or a number"
    raise InvalidTemplateOptionsError(f"{where} {found}", param=param)


def _checked_document(document: object, where: str) -> dict[str, str]:
    if not isinstance(document, Mapping):
        found = f"{where} is of type {type(document).__name__}; send an object of strings"
        raise InvalidTemplateOptionsError(found, param="documents")
    for key, value in document.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidTemplateOptionsError(
                f"{where}.{str(key)[:50]} is of type {type(value).__name__}; send a string",
                param="documents",
            )
        _well_formed(key, where, "documents")
        _well_formed(value, where, "documents")
    return dict(document)


def _well_formed(text: str, where: str, param: str) -> str:
    try:
        return well_formed(text, where)
    except InvalidMessagesError as error:
        raise InvalidTemplateOptionsError(str(error), param=param) from error
