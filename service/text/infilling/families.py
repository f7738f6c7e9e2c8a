"""How families of code models write text with a gap: pieces, their order, what ends the middle.

Each layout is what its publisher's own code or paper writes; docs/infilling.md names them. Only
data: which variant is of which family is `choice`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


class InfillOrder(Enum):
    """Which part a prompt begins with; the values are the literature's names."""

    PREFIX_FIRST = "psm"  # prefix, suffix, middle
    SUFFIX_FIRST = "spm"  # suffix, prefix, middle


class Part(Enum):
    """What is typed around a gap."""

    PREFIX = "prefix"
    SUFFIX = "suffix"


Layout: TypeAlias = tuple[str | Part, ...]  # pieces by their text, and the parts between them


@dataclass(frozen=True, slots=True)
class FilePieces:
    """How other files of the project stand before the gap's: each its name, a line end, its text.

    Clients name neither the project nor the gap's file, so both have stand-ins: llama.cpp's, with
    which editors' plugins have been tried.
    """

    separator: str
    ends_files: bool = False  # the separator stands behind each file, not before
    project: str | None = None  # the piece before the project's name
    project_name: str = ""
    gap_name: str = ""  # behind the separator before the gap's own file

    @property
    def pieces(self) -> tuple[str, ...]:
        return (self.separator,) if self.project is None else (self.project, self.separator)


@dataclass(frozen=True, slots=True)
class InfillFamily:
    """One way of writing text with a gap."""

    name: str
    layouts: Mapping[InfillOrder, Layout]  # the default first
    ends: tuple[str, ...]  # what a model writes behind the middle, or instead of more of it
    files: FilePieces | None = None

    @property
    def needed_pieces(self) -> frozenset[str]:
        """The pieces without which nothing can be written."""
        every = {item for layout in self.layouts.values() for item in layout}
        return frozenset(item for item in every if isinstance(item, str))

    @property
    def pieces(self) -> tuple[str, ...]:
        """All of its pieces; a tokenizer may lack those that are not needed."""
        files = () if self.files is None else self.files.pieces
        return tuple(dict.fromkeys([*self.ends, *sorted(self.needed_pieces), *files]))


def _both_orders(begin: str, suffix: str, middle: str) -> dict[InfillOrder, Layout]:
    """Write both orders with the same beginning, as the second variant of Bavarian et al. does."""
    return {
        InfillOrder.PREFIX_FIRST: (begin, Part.PREFIX, suffix, Part.SUFFIX, middle),
        InfillOrder.SUFFIX_FIRST: (begin, suffix, Part.SUFFIX, middle, Part.PREFIX),
    }


def _prefix_first(begin: str, suffix: str, middle: str) -> dict[InfillOrder, Layout]:
    return {InfillOrder.PREFIX_FIRST: (begin, Part.PREFIX, suffix, Part.SUFFIX, middle)}


CODELLAMA = InfillFamily("CodeLlama", _both_orders("▁<PRE>", "▁<SUF>", "▁<MID>"), ("▁<EOT>",))

# Version 2 of the family, and what came of it, has the same pieces.
DEEPSEEK = InfillFamily(
    "DeepSeek-Coder",
    _prefix_first("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<｜end▁of▁sentence｜>", "<|EOT|>"),
)

# StarCoder's pieces are also those of StarCoder2, Granite Code, CodeQwen1.5 and Stable Code.
# Only StarCoder2 has the two pieces for files; it writes the gap's name inside its prefix, or none.
STARCODER = InfillFamily(
    "StarCoder",
    _both_orders("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>", "<filename>", "<reponame>"),
    FilePieces("<file_sep>", project="<repo_name>", project_name="myproject"),
)

SANTACODER = InfillFamily(
    "SantaCoder",
    _both_orders("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|endoftext|>", "<fim-pad>"),
)

QWEN_CODER = InfillFamily(
    "Qwen-Coder",
    _prefix_first("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    FilePieces(
        "<|file_sep|>",
        project="<|repo_name|>",
        project_name="myproject\n",
        gap_name="filename\n",
    ),
)

CODEGEMMA = InfillFamily(
    "CodeGemma",
    _prefix_first("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<|file_separator|>", "<eos>"),
    FilePieces("<|file_separator|>", ends_files=True),
)

# Nothing stands behind the prefix: the publisher's own code does not write [MIDDLE].
CODESTRAL = InfillFamily(
    "Codestral",
    {InfillOrder.SUFFIX_FIRST: ("[SUFFIX]", Part.SUFFIX, "[PREFIX]", Part.PREFIX)},
    ("</s>", "[MIDDLE]"),
)

# Those with the same pieces for the gap are told apart by the others.
_TELLING = {"Qwen-Coder": "<|file_sep|>", "CodeGemma": "<|file_separator|>"}
FAMILIES = (CODELLAMA, DEEPSEEK, STARCODER, SANTACODER, QWEN_CODER, CODEGEMMA, CODESTRAL)


def families_with(pieces: frozenset[str]) -> list[InfillFamily]:
    """List the families all of whose needed pieces are among `pieces`."""
    return [
        family
        for family in FAMILIES
        if family.needed_pieces <= pieces and _TELLING.get(family.name, "") in pieces | {""}
    ]
