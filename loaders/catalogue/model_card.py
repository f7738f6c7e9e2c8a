"""What a model card says: names, prompt template, and the table of provided files.

A light reading that survives model cards which lost their newlines or have a "|" after every line;
it never fails, it only finds less. A model card may be wrong for its model: who asks decides what
to believe.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

import yaml

from loaders.catalogue.model_card_table import ModelCardRow, find_rows

MAX_MODEL_CARD_BYTES = 2_000_000  # the longest of the model cards we know has 31 KB
MAX_FRONT_MATTER_CHARS = 64 * 1024
# Where all newlines were lost, only known keys tell where one value ends.
FRONT_MATTER_KEY = re.compile(
    r"(?:^|\s)(base_model|datasets|inference|language|library_name|license|metrics|model_creator"
    r"|model_link|model_name|model_type|pipeline_tag|prompt_template|quantized_by|tags):(?=\s)"
)
SECTION = re.compile(r"^#{2,}[ \t]*Prompt template\b:?|(?<=\s)##[ \t]Prompt template:", re.I | re.M)
SECTION_END = re.compile(r"(?:^|\s)##\s|<!-- prompt-template end")
UNDECIDED = {"", "tbc", "unknown", "none"}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model card's own words; None where it has none."""

    model_name: str | None = None
    base_model: str | None = None
    template_name: str | None = None  # from the heading "Prompt template: NAME"
    template_text: str | None = None  # the front matter's, else the block under that heading
    rows: tuple[ModelCardRow, ...] = ()  # of the tables of provided files
    remarks: tuple[str, ...] = ()  # what of it was not read, and why; sentences


def read_model_card(content: bytes) -> ModelCard:
    """Read a README.md as it lies in a repository: any bytes, any length."""
    text = content[:MAX_MODEL_CARD_BYTES].decode(errors="replace")
    model_card = parse_model_card(text)
    if len(content) <= MAX_MODEL_CARD_BYTES:
        return model_card
    remark = (
        f"the model card is longer than {MAX_MODEL_CARD_BYTES} bytes; the rest of it was not read"
    )
    return replace(model_card, remarks=(*model_card.remarks, remark))


def parse_model_card(text: str) -> ModelCard:
    """Read a README.md."""
    text = _without_line_bars(text.replace("\r\n", "\n").lstrip("\ufeff"))
    front = _front_matter(text)
    name, block = _prompt_template_section(text)
    return ModelCard(
        model_name=front.get("model_name"),
        base_model=front.get("base_model"),
        template_name=name,
        template_text=front.get("prompt_template") or block,
        rows=find_rows(text),
    )


def _without_line_bars(text: str) -> str:
    """Mend what was pasted as a one-column table: "line |", then a line of "|" alone."""
    lines = text.split("\n")
    with_bar = sum(line.rstrip().endswith("|") for line in lines)
    if with_bar < 0.9 * len(lines):
        return text
    mended: list[str] = []
    num_bars = 0
    for line in lines:
        if line.strip() == "|":
            num_bars += 1
            continue
        # An empty line of the original is one bar; each line is followed by one more.
        mended += [""] * ((num_bars - 1) // 2) + [line.rstrip().removesuffix("|").rstrip()]
        num_bars = 0
    return "\n".join(mended)


def _front_matter(text: str) -> dict[str, str]:
    """Give the front matter's entries that are plain text."""
    found = re.match(r"\s*---\s(.*?)(?:\s---\s|\s---$)", text[:MAX_FRONT_MATTER_CHARS], re.S)
    if found is None:
        return {}
    try:
        entries = yaml.load(found[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        entries = _entries_without_newlines(found[1])
    first = {key: _first_text(value) for key, value in entries.items()}
    return {key: value for key, value in first.items() if value}


def _entries_without_newlines(text: str) -> dict[str, str]:
    keys = list(FRONT_MATTER_KEY.finditer(text))
    values = [
        text[key.end() : following.start()] for key, following in itertools.pairwise(keys)
    ] + [text[key.end() :] for key in keys[-1:]]
    return {key[1]: value.strip() for key, value in zip(keys, values, strict=True)}


def _first_text(value: object) -> str | None:
    """Give a text, or the first of a list of them (`base_model` may be either)."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, str) else None


def _prompt_template_section(text: str) -> tuple[str | None, str | None]:
    """Give the name in the heading and the block below it."""
    heading = SECTION.search(text)
    if heading is None:
        return None, None
    rest = text[heading.end() :]
    end = SECTION_END.search(rest)
    section = rest[: end.start()] if end else rest
    name = re.split(r"\n|```|<!--", section, maxsplit=1)[0].strip()
    # From the first fence to the last: a block may hold fences of its own.
    parts = section.split("```")
    block = "```".join(parts[1:-1]).strip("\n") if len(parts) > 2 else None
    return (None if name.lower() in UNDECIDED else name), block or None
