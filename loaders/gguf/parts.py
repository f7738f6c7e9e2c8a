"""Groups a repository's GGUF files into variants: whole ones, cut ones, and sets of shards.

`name.gguf-split-a`, `-split-b`, … are one file that was cut; `name-00001-of-00003.gguf`, … are a
set of files with some of the tensors each. Either is one variant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

CUT = re.compile(r"(?P<stem>.+\.gguf)-split-(?P<letter>[a-z])", re.IGNORECASE)
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_ENDING = re.compile(r"(-\d{5}-of-\d{5})?\.gguf(-split-[a-z])?$", re.IGNORECASE)
# What llama.cpp calls its types, as a word of a file's name: Q4_K_M, IQ2_XS, BF16.
_TYPE = re.compile(
    r"(?<![A-Za-z0-9])((?:I?Q|TQ)[1-9]\w{0,8}|(?:BF|F|FP)(?:16|32)|MXFP4)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class GgufParts:
    """The files of one variant."""

    name: str  # of the whole: what a model card lists
    paths: tuple[str, ...]  # in order
    is_set: bool  # every file has a header of its own

    @property
    def first(self) -> str:
        """The file that names the variant."""
        return self.paths[0]

    @property
    def type_in_name(self) -> str | None:
        """The quantisation that the name says, as in `Q4_K_M`."""
        found = _TYPE.findall(self.name.rpartition("/")[2].removesuffix(".gguf"))
        return found[-1].upper() if found else None

    def check_complete(self) -> None:
        """Raise CheckpointError where a part is missing."""
        if self.is_set:
            numbers = [SHARD.fullmatch(path) for path in self.paths]
            count = max(int(match["count"]) for match in numbers if match)
            found = [int(match["number"]) for match in numbers if match]
        else:
            cuts = [CUT.fullmatch(path) for path in self.paths]
            found = [ord(match["letter"].lower()) - ord("a") + 1 for match in cuts if match]
            count = len(found)
        if found != list(range(1, count + 1)):
            raise CheckpointError(
                f"parts of {self.name} are missing: found {', '.join(self.paths[:8])}"
            )


def is_gguf(name: str) -> bool:
    """Whether a file of that name is a GGUF file or a part of one."""
    return name.lower().endswith(".gguf") or CUT.fullmatch(name) is not None


def without_ending(name: str) -> str:
    """Leave out what says that it is GGUF, and which part of it."""
    return _ENDING.sub("", name)


def group_parts(paths: Iterable[str]) -> list[GgufParts]:
    """Group all GGUF files among paths; others are left out. Sorted by name."""
    parts: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        if match := CUT.fullmatch(path):
            parts.setdefault((match["stem"], "cut"), []).append(path)
        elif match := SHARD.fullmatch(path):
            parts.setdefault((f"{match['stem']}.gguf", "set"), []).append(path)
        elif is_gguf(path):
            parts.setdefault((path, "whole"), []).append(path)
    return [GgufParts(name, tuple(found), kind == "set") for (name, kind), found in parts.items()]
