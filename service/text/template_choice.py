"""Which chat template a variant gets, and where from.

The operator's choice counts first, then the tokenizer's own template, then the family's. A request
never chooses one. Whether the chosen one works is seen in `templates`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.checkpoint.regular_files import read_regular
from loaders.errors import CheckpointError
from service.text.errors import ChatNotSupportedError, TemplateSettingError
from service.text.families import FAMILIES, decide_family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts

MAX_FILE_BYTES = 1024**2  # the longest that models come with have some 30 KB
_OWN = "the tokenizer's own"
_DEFAULT = "default"  # what a tokenizer calls the one of several that counts
_FILE_ENDS = (".jinja", ".jinja2", ".j2")


class TemplateOrigin(enum.StrEnum):
    """Where a template came from."""

    TOKENIZER = "tokenizer"
    FAMILY = "family"
    FILE = "file"  # the operator's


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """A template as text."""

    name: str  # whose it is, for people
    source: str  # Jinja
    origin: TemplateOrigin
    is_operators_choice: bool = False


def choose_template(
    tokenizer: PreTrainedTokenizerBase, facts: VariantFacts, asked: str | None = None
) -> ChosenTemplate:
    """Choose a variant's template; asked: the setting `chat_template`.

    Raises TemplateSettingError, ChatNotSupportedError where nothing is asked and nothing fits.
    """
    own = _own_templates(tokenizer)
    if asked is not None:
        return _asked_template(asked, own, facts)
    if _DEFAULT in own:
        return ChosenTemplate(_OWN, own[_DEFAULT], TemplateOrigin.TOKENIZER)
    try:
        family = decide_family(facts)
    except ChatNotSupportedError as error:
        if not own:
            raise
        raise ChatNotSupportedError(
            f"{error} Its tokenizer has templates by name and none of them is the default; the"
            f" operator can choose one by the setting chat_template: {', '.join(sorted(own))}."
        ) from error
    return ChosenTemplate(family.name, family.template, TemplateOrigin.FAMILY)


def check_setting(asked: str) -> None:
    """Look at what can be known before anything is loaded: whether a file can be read.

    Raises TemplateSettingError.
    """
    if _is_file(asked):
        _read_file(asked)


def _is_file(asked: str) -> bool:
    return "/" in asked or asked.endswith(_FILE_ENDS)


def _read_file(asked: str) -> str:
    path = Path(asked).expanduser()
    try:
        source = read_regular(path, most=MAX_FILE_BYTES).decode()
    except CheckpointError as error:
        raise TemplateSettingError(f"chat_template: {error}") from error
    except UnicodeDecodeError as error:
        raise TemplateSettingError(
            f"chat_template: {path} is no text in UTF-8 (byte {error.start}); name a Jinja file"
        ) from error
    if not source.strip():
        raise TemplateSettingError(f"chat_template: {path} is empty; name a Jinja file")
    return source


def _asked_template(asked: str, own: dict[str, str], facts: VariantFacts) -> ChosenTemplate:
    if _is_file(asked):
        source = _read_file(asked)
        return ChosenTemplate(Path(asked).name, source, TemplateOrigin.FILE, True)
    if asked in own:
        name = _OWN if asked == _DEFAULT else f"{_OWN}, {asked!r}"
        return ChosenTemplate(name, own[asked], TemplateOrigin.TOKENIZER, True)
    family = FAMILIES.get(asked)
    if family is None:
        raise TemplateSettingError(
            f"chat_template is {asked!r}, but {facts.repo}'s tokenizer has "
            f"{', '.join(sorted(own)) or 'none of its own'}, and the families' are"
            f" {', '.join(FAMILIES)}; name one of them, or a file that ends in .jinja"
        )
    if missing := family.needed_pieces - facts.pieces:
        raise TemplateSettingError(
            f"chat_template is {asked!r}, but {facts.repo}'s tokenizer lacks"
            f" {', '.join(sorted(missing))}, without which {family.name} means nothing; choose"
            " another template"
        )
    return ChosenTemplate(family.name, family.template, TemplateOrigin.FAMILY, True)


def _own_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Give the tokenizer's templates by name; a single one is the default."""
    template = tokenizer.chat_template
    named = template if isinstance(template, dict) else {_DEFAULT: template}
    # As they come from a file, they may be anything.
    return {
        str(name): source for name, source in named.items() if source and isinstance(source, str)
    }
