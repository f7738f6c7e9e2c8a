"""Puts prefix, suffix and other files together as a variant was trained to see them, as token ids.

Pieces are placed by their ids, never written into text, so what users typed can't be mistaken for
them. Nothing is changed while it works: any number of threads may use one `Infilling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from service.text.backend import fast_backend, leading_ids
from service.text.encoding import MAX_WHOLE, first_ids, last_ids, well_formed
from service.text.errors import (
    InfillingNotSupportedError,
    InfillSettingError,
    InvalidInfillingError,
)
from service.text.infilling.choice import choose_family, every_piece
from service.text.infilling.families import InfillOrder, Part
from service.text.infilling.fitting import FileIds, keep_files, share_room
from service.text.infilling.parts import PartEncoder
from service.text.text_bound import TextBound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from service.text.facts import VariantFacts
    from service.text.infilling.families import InfillFamily

# Before each other file where a family has no pieces for them: llama.cpp's words, which leave the
# file's name out.
_SNIPPET = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class InfillFile:
    """Another file of the project, or a part of one."""

    filename: str
    text: str


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """A prompt that ends where the middle begins, and how many tokens had no room.

    Text far beyond the room is not encoded; of its tokens as many are counted as it has at least.
    """

    token_ids: list[int]
    num_cut_prefix: int  # from its beginning
    num_cut_suffix: int  # from its end
    num_cut_files: int  # from the first one on, their names included


def resolve_infilling(
    tokenizer: PreTrainedTokenizerBase, facts: VariantFacts, asked: str | None = None
) -> Infilling:
    """Choose how the variant infills and make it ready; asked: the setting `infill_order`.

    Raises InfillingNotSupportedError, whose message says why the variant can't and what it can do;
    InfillSettingError where an order is asked for that the variant has not.
    """
    backend = fast_backend(tokenizer)
    found = {piece: backend.token_to_id(piece) for piece in every_piece()}
    ids = {piece: number for piece, number in found.items() if number is not None}
    try:
        family = choose_family(facts, ids)
        order = None if asked is None else _order_of(family, asked)
        return Infilling(tokenizer, family, vocab_size=facts.vocab_size, order=order)
    except InfillingNotSupportedError as error:
        if asked is None:
            raise
        raise InfillSettingError(
            f"infill_order is {asked!r}, but {error} To serve it without, leave infill_order at"
            " 'auto'."
        ) from error


class Infilling:
    """Makes prompts with a gap for one variant; may be used from several threads."""

    family: str  # the name of the family whose way it is
    order: InfillOrder  # the operator's choice, else the family's default
    orders: tuple[InfillOrder, ...]  # all that the family was trained with
    stop_token_ids: frozenset[int]  # the middle ends before any of them
    has_file_pieces: bool  # else other files are plain text

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        family: InfillFamily,
        *,
        vocab_size: int | None = None,
        order: InfillOrder | None = None,
    ) -> None:
        """Prepare; raises InfillingNotSupportedError where text cannot be encoded exactly.

        vocab_size: how many rows the model has; pieces beyond them can't be generated.
        order: one of the family's; None is its first.
        """
        backend = fast_backend(tokenizer)
        self.family = family.name
        self.orders = tuple(family.layouts)
        self.order = self.orders[0] if order is None else order
        self._layouts = family.layouts
        self._leading = leading_ids(backend)
        self._bound = TextBound.of(tokenizer)
        self._ids = _known_ids({p: backend.token_to_id(p) for p in family.pieces}, vocab_size)
        files = family.files
        has_pieces = files is not None and self._ids.keys() >= set(files.pieces)
        self._files = files if has_pieces else None
        self.has_file_pieces = self._files is not None
        # Any of its pieces would begin another prompt, so each ends the middle.
        eos_id = tokenizer.eos_token_id
        self.stop_token_ids = frozenset(
            [*self._ids.values(), *([] if eos_id is None else [eos_id])]
        )
        self._stops = sorted(filter(None, map(backend.id_to_token, self.stop_token_ids)))
        self._encoder = PartEncoder(backend, family.pieces)
        self._snippet = self._encoder.go_on(_SNIPPET)
        self._before_files, self._behind_files = self._around_files()

    @property
    def record(self) -> dict[str, object]:
        """Tell what it can, for /v1/models."""
        return {
            "family": self.family,
            "orders": [order.value for order in self.orders],
            "default_order": self.order.value,
            "stop": list(self._stops),
            "file_pieces": self.has_file_pieces,
        }

    def assemble(
        self,
        prefix: str,
        suffix: str,
        *,
        max_tokens: int,
        files: Sequence[InfillFile] = (),
        order: InfillOrder | None = None,
        prompt: str = "",
    ) -> InfillPrompt:
        """Make the prompt for the gap between `prefix` and `suffix`, of at most `max_tokens`.

        files: others of the project, those that matter most last.
        prompt: what stands between prefix and gap, as llama.cpp's field of that name; it is joined
        with the prefix before both are encoded, as a model has seen them.
        Raises InvalidInfillingError for an order that the family has not and where the pieces alone
        have no room, InvalidPromptError, TokenizerFailedError.
        """
        layout = self._layouts.get(self.order if order is None else order)
        if layout is None:
            raise InvalidInfillingError(_orders_in_words(self.family, self.orders))
        # Every prefix is the beginning of a text to its tokenizer, as the publishers' own code has
        # it, also behind the suffix.
        frame = len(self._leading) + sum(isinstance(item, str) for item in layout)
        room = max_tokens - frame
        prefix_ids, before = last_ids(self._encoder.begin, well_formed(prefix + prompt), room)
        suffix_ids, behind = first_ids(self._encoder.go_on, well_formed(suffix), room)
        ids = {Part.PREFIX: prefix_ids, Part.SUFFIX: suffix_ids}
        kept = _keep_near(ids, room)
        num_kept = sum(map(len, kept.values()))
        file_ids, num_cut_files = self._file_ids(files, room - num_kept)
        placed = (kept[item] if isinstance(item, Part) else [self._ids[item]] for item in layout)
        return InfillPrompt(
            token_ids=[*self._leading, *file_ids, *chain.from_iterable(placed)],
            num_cut_prefix=len(prefix_ids) - len(kept[Part.PREFIX]) + self._least(before),
            num_cut_suffix=len(suffix_ids) - len(kept[Part.SUFFIX]) + self._least(behind),
            num_cut_files=num_cut_files,
        )

    def _file_ids(self, files: Sequence[InfillFile], room: int) -> tuple[list[int], int]:
        """Give the ids of the files that have room, and how many were cut."""
        if not files:
            return [], 0
        before, behind = self._before_files, self._behind_files
        left = room - len(before) - len(behind)
        every, num_cut = self._encode_files(files, left)
        kept = keep_files(every, left)
        num_cut += sum(file.size for file in every) - sum(file.size for file in kept)
        if not kept:
            return [], num_cut
        return [*before, *chain.from_iterable(file.ids for file in kept), *behind], num_cut

    def _encode_files(self, files: Sequence[InfillFile], room: int) -> tuple[list[FileIds], int]:
        """Encode the files from the last on; also count the tokens of what has no room by far."""
        every: list[FileIds] = []
        num_tokens = num_characters = num_cut = 0
        for file in reversed(files):
            if num_tokens > room and num_characters > MAX_WHOLE:
                num_cut += self._least(file.text)
                continue
            ids, left_out = self._one_file(file, room)
            every.append(ids)
            num_tokens += ids.size
            num_characters += len(file.text)
            num_cut += self._least(left_out)
        return every[::-1], num_cut

    def _least(self, text: str) -> int:
        return self._bound.least_tokens(text) if text else 0

    def _around_files(self) -> tuple[list[int], list[int]]:
        """Give what stands before the first file, and between the last and the gap's own."""
        pieces = self._files
        if pieces is None:
            return [], []
        named = [] if pieces.project is None else [self._ids[pieces.project]]
        before = [*named, *self._encoder.go_on(pieces.project_name)]
        if pieces.ends_files:
            return before, []
        return before, [self._ids[pieces.separator], *self._encoder.go_on(pieces.gap_name)]

    def _one_file(self, file: InfillFile, room: int) -> tuple[FileIds, str]:
        """Encode a file, as much of its end as may have room; also return what was left out."""
        pieces = self._files
        text, left_out = last_ids(self._encoder.go_on, well_formed(file.text), room)
        if pieces is None:
            return FileIds(self._snippet, text, []), left_out
        name = self._encoder.go_on(f"{file.filename}\n")
        separator = [self._ids[pieces.separator]]
        if pieces.ends_files:
            return FileIds(name, text, separator), left_out
        return FileIds([*separator, *name], text, []), left_out


def _order_of(family: InfillFamily, asked: str) -> InfillOrder:
    """Return the order that a family is asked for. Raises InfillSettingError."""
    for order in family.layouts:
        if order.value == asked:
            return order
    raise InfillSettingError(
        f"infill_order is {asked!r}, but {_orders_in_words(family.name, family.layouts)}; choose"
        " that, or 'auto'"
    )


def _orders_in_words(family: str, orders: Iterable[InfillOrder]) -> str:
    has = " or ".join(repr(order.value) for order in orders)
    return f"{family} models infill in the order {has} alone"


def _known_ids(ids: Mapping[str, int | None], vocab_size: int | None) -> dict[str, int]:
    """Keep the pieces that the tokenizer has and the model has rows for."""
    return {
        piece: number
        for piece, number in ids.items()
        if number is not None and (vocab_size is None or number < vocab_size)
    }


def _keep_near(ids: Mapping[Part, list[int]], room: int) -> dict[Part, list[int]]:
    """Keep the end of the prefix and the beginning of the suffix."""
    prefix, suffix = ids[Part.PREFIX], ids[Part.SUFFIX]
    if room < min(1, len(prefix) + len(suffix)):
        raise InvalidInfillingError(
            "the prompt has no room for any text between the pieces that mark the gap; ask for a"
            " shorter answer"
        )
    num_prefix, num_suffix = share_room(room, len(prefix), len(suffix))
    return {Part.PREFIX: prefix[len(prefix) - num_prefix :], Part.SUFFIX: suffix[:num_suffix]}
