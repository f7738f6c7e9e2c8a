"""Everything the text layer raises on purpose.

TextError
├── InvalidTextError             the caller can mend it
│   ├── InvalidMessagesError       roles, contents or their order
│   ├── InvalidPromptError         text that is not Unicode
│   ├── TextTooLongError           more text than the model's context holds, however it is encoded
│   ├── InvalidInfillingError      an order that the family has not, or no room
│   ├── InvalidStopStringError     nothing to stop at
│   ├── InvalidBadWordError        nothing to ban, or too much
│   └── InvalidTemplateOptionsError  what the chat template has no use for
├── ChatNotSupportedError        the variant cannot chat; the message says why, and what works
│   └── BaseModelError             it was not trained to
├── InfillSettingError           the operator's choice of an order is none of the variant's
├── InfillingNotSupportedError   the variant cannot infill; the message says why, and what works
├── TemplateFailedError          the checkpoint's template broke or went past its limits
│   └── TemplateInterruptedError   its process was ended from outside; asked again, it may work
├── TemplateSettingError         the operator's choice of a template names none that works
├── TokenizerFailedError         the checkpoint's tokenizer broke on a text, or takes too long
└── UnsupportedTokenizerError    the tokenizer cannot be used as it was loaded
"""

from __future__ import annotations


class TextError(Exception):
    """Root of the text layer's errors."""


class InvalidTextError(TextError):
    """The request cannot become token ids; the message says what to change."""


class InvalidMessagesError(InvalidTextError):
    """The messages are not a dialogue that this variant can take."""


class InvalidPromptError(InvalidTextError):
    """The prompt is not well-formed text."""


class TextTooLongError(InvalidTextError):
    """A text has more tokens than may be; known before they are made."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; send a shorter text")
        self.found = message  # what was found and expected, without what to do


class InvalidInfillingError(InvalidTextError):
    """The parts around a gap cannot be put together as asked."""


class InvalidStopStringError(InvalidTextError):
    """A stop string is empty."""


class InvalidBadWordError(InvalidTextError):
    """A bad word is empty or too long, or there are too many."""


class InvalidTemplateOptionsError(InvalidTextError):
    """The chat template has no use for what the request says beside its messages."""

    def __init__(self, message: str, *, param: str) -> None:
        """param: the field of the request that is at fault."""
        super().__init__(message)
        self.param = param


class ChatNotSupportedError(TextError):
    """No chat template fits the variant."""


class InfillingNotSupportedError(TextError):
    """The variant was not trained to fill in the middle, or nothing tells that it was."""


class InfillSettingError(TextError):
    """The setting `infill_order` names an order in which the variant was not trained to infill."""


class BaseModelError(ChatNotSupportedError):
    """The variant is a base model, which continues text."""


class TemplateFailedError(TextError):
    """The chat template itself is at fault, not the messages."""


class TemplateInterruptedError(TemplateFailedError):
    """The template's process was ended from outside, or got no time: nobody's fault here."""


class TemplateSettingError(TextError):
    """The setting `chat_template` names no template that works for the variant."""


class TokenizerFailedError(TextError):
    """The tokenizer itself is at fault, not the text."""


class UnsupportedTokenizerError(TextError):
    """The tokenizer lacks, or was loaded with, something that would give wrong ids."""


def broken_tokenizer(words: str) -> TokenizerFailedError:  # noqa: ARG001 - may quote the text
    """Say that a tokenizer's library broke down on a text or on ids."""
    return TokenizerFailedError(
        "the model's tokenizer broke on this text, which is a fault of its files; send another one"
    )
