"""A GGUF file's vocabulary: its pieces, their kinds, and what the settings say of them, checked.

Each setting of the tokenizer is read, or known to say nothing, or refused: one that is left out in
silence gives other tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from loaders.errors import CheckpointError
from loaders.gguf.special_tokens import special_token_id

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
_START = "tokenizer.ggml."
_READ = frozenset(
    {
        "model",
        "pre",
        "tokens",
        "token_type",
        "scores",
        "merges",
        "add_bos_token",
        "add_eos_token",
        "add_space_prefix",
    }
)
# Kinds of texts, pieces that are in the list anyway, and what stands between two texts.
_SAYS_NOTHING = frozenset({"token_type_count", "added_tokens", "add_sep_token"})
_NAMES_PIECES = re.compile(r"\w+_token_ids?")
# With any other value they make other tokens of a text, or keep some from being answers.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "remove_extra_whitespaces": (False,),
    "escape_whitespaces": (True,),
    "precompiled_charsmap": ((),),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
    "suppress_tokens": ((),),
}
# Far above any vocabulary there is (2026: 262 144 pieces, some two million characters in all), and
# built in some seconds.
MAX_PIECES = 1_000_000
MAX_PIECE_CHARACTERS = 1_024
MAX_CHARACTERS = 16_000_000
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A file's vocabulary, checked."""

    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]  # empty where pieces have none
    merges: tuple[str, ...]
    settings: Mapping[str, Any]  # all metadata

    @property
    def ids(self) -> dict[str, int]:
        """Each piece's id."""
        return {piece: number for number, piece in enumerate(self.pieces)}

    @property
    def is_sentencepiece(self) -> bool:
        """Whether its pieces have scores and mark spaces, and are not merged by a list."""
        return bool(self.get("model") == "llama")

    def get(self, name: str, default: Any = None) -> Any:
        """Give a setting as it is stored."""
        return self.settings.get(f"{_START}{name}", default)

    def flag(self, name: str, *, default: bool) -> bool:
        """Read a setting that is on or off. Raises CheckpointError for one that is neither."""
        found = self.get(name)
        if found is None:
            return default
        if type(found) is not bool:
            raise CheckpointError(
                f"the GGUF metadata's {_START}{name} is {str(found)[:40]}, expected true or false"
            )
        return found

    def special_id(self, name: str) -> int | None:
        """Give the id of a special piece; None where there is none."""
        return special_token_id(self.settings, name, len(self.pieces))


def read_vocabulary(metadata: Mapping[str, Any], num_rows: int | None = None) -> Vocabulary:
    """Read and check a vocabulary. Raises CheckpointError.

    num_rows: how many pieces the model has; without it every piece is taken.
    """
    pieces = _array(metadata, "tokens", str)
    if not pieces:
        raise CheckpointError("the GGUF file holds no tokenizer (tokenizer.ggml.tokens)")
    kinds = _array(metadata, "token_type", int) or (NORMAL,) * len(pieces)
    scores = _array(metadata, "scores", float)
    for name, values in (("token_type", kinds), ("scores", scores)):
        if values and len(values) != len(pieces):
            raise CheckpointError(
                f"the GGUF file's tokenizer has {len(pieces)} pieces and {len(values)} values of"
                f" {name}"
            )
    _check_settings(metadata)
    _check_pieces(pieces)
    found = Vocabulary(pieces, kinds, scores, _array(metadata, "merges", str), metadata)
    return found if num_rows is None else _fitted(found, num_rows)


def _array(metadata: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = metadata.get(f"{_START}{name}", ())
    if not isinstance(values, tuple) or not all(type(value) is kind for value in values):
        raise CheckpointError(
            f"the GGUF metadata's {_START}{name} is no list of {kind.__name__} values"
        )
    return values


def _check_settings(metadata: Mapping[str, Any]) -> None:
    for name, value in metadata.items():
        key = name.removeprefix(_START)
        if key == name or key in _READ or key in _SAYS_NOTHING or _NAMES_PIECES.fullmatch(key):
            continue
        if key not in _NEUTRAL:
            raise CheckpointError(
                f"the GGUF file says {name} ({str(value)[:40]}), which is not known here and may"
                " change how text becomes tokens; choose a file without it"
            )
        if value not in _NEUTRAL[key]:
            raise CheckpointError(
                f"the GGUF file's {name} is {str(value)[:40]}, expected"
                f" {_NEUTRAL[key][0] or 'nothing'}: tokenizers that do this are not read"
            )


def _check_pieces(pieces: tuple[str, ...]) -> None:
    """Raise CheckpointError for a vocabulary without end, and for a piece that is there twice."""
    longest = max(map(len, pieces))
    if len(pieces) > MAX_PIECES or longest > MAX_PIECE_CHARACTERS:
        raise CheckpointError(
            f"the GGUF file's tokenizer has {len(pieces)} pieces of up to {longest} characters; at"
            f" most {MAX_PIECES} of {MAX_PIECE_CHARACTERS} are read"
        )
    if (total := sum(map(len, pieces))) > MAX_CHARACTERS:
        raise CheckpointError(
            f"the GGUF file's tokenizer has pieces of {total} characters in all; at most"
            f" {MAX_CHARACTERS} are read"
        )
    (piece, count), *_ = Counter(piece for piece in pieces if piece).most_common(1) or [("", 1)]
    if count > 1:
        # One of its ids would say nothing.
        raise CheckpointError(
            f"the GGUF file's tokenizer holds the piece {piece[:60]!r} {count} times; convert the"
            " model again"
        )


def _fitted(vocabulary: Vocabulary, num_rows: int) -> Vocabulary:
    """Leave out special pieces and fillers behind the model's last row.

    Raises CheckpointError for ordinary ones: a text may become them.
    """
    beyond = vocabulary.pieces[num_rows:]
    if not beyond:
        return vocabulary
    ordinary = [
        piece
        for piece, kind in zip(beyond, vocabulary.kinds[num_rows:], strict=True)
        if kind not in (CONTROL, USER_DEFINED, UNUSED) and piece
    ]
    if ordinary:
        raise CheckpointError(
            f"the GGUF file's tokenizer has {len(vocabulary.pieces)} pieces, its model"
            f" {num_rows}; there is no place for {ordinary[0][:40]!r}; convert the model again"
        )
    log.warning("pieces_left_out", count=len(beyond), first=beyond[:4], reason="no such rows")
    return replace(
        vocabulary,
        pieces=vocabulary.pieces[:num_rows],
        kinds=vocabulary.kinds[:num_rows],
        scores=vocabulary.scores[:num_rows],
    )


def check_byte_pieces(vocabulary: Vocabulary) -> None:
    """Raise CheckpointError for a piece of the kind of bytes that names none."""
    for piece, kind in zip(vocabulary.pieces, vocabulary.kinds, strict=True):
        if kind == BYTE and not _BYTE_PIECE.fullmatch(piece):
            raise CheckpointError(
                f"the GGUF file's tokenizer says that {piece[:40]!r} is a byte, expected one as"
                " <0x0A>"
            )


def with_space_marks(vocabulary: Vocabulary) -> Vocabulary:
    """Write spaces in user-defined pieces as marks, as all other pieces have them.

    Converters since July 2024 write them as spaces, those before as marks.
    """
    every = set(vocabulary.pieces)
    pieces = tuple(
        marked
        if kind == USER_DEFINED and (marked := piece.replace(" ", SPACE)) not in every
        else piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.kinds, strict=True)
    )
    return replace(vocabulary, pieces=pieces)
