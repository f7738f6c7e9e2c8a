"""A model card's table of provided files: one row for each branch or GGUF file.

Reads tables of several publishers, by their columns' names, also where newlines were lost; what
cannot be read is left out. Every line is looked at once, so the time is linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_ROWS = 1000
_MAX_CELL_CHARS = 2000
_MAX_COLUMNS = 24
_LINK = re.compile(r"\[([^\[\]]{1,300})\]\([^()\s]{0,1000}\)")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,6})?")
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s?([KMGT])B", re.IGNORECASE)
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_RULE = re.compile(r"\s{0,9}:?-{2,}:?\s{0,9}")


@dataclass(frozen=True, slots=True)
class ModelCardRow:
    """One row of a model card's table of provided files; None where that says nothing."""

    name: str  # the branch, or the GGUF file
    bits: int | None = None
    group_size: int | None = None  # -1 is the whole input dimension
    desc_act: bool | None = None
    damp: float | None = None  # damp_percent, as a share: 0.1
    dataset: str | None = None
    seq_len: int | None = None  # tokens
    num_bytes: int | None = None  # the model card's GB are 10^9 bytes, rounded to two places
    quant_method: str | None = None  # of a GGUF file: Q4_K_M
    description: str | None = None


def find_rows(text: str) -> tuple[ModelCardRow, ...]:
    """Read every table of provided files in a model card; the first row of a name counts."""
    rows: dict[str, ModelCardRow] = {}
    for row in _all_rows(text):
        rows.setdefault(row.name, row)
        if len(rows) == MAX_ROWS:
            break
    return tuple(rows.values())


def _all_rows(text: str) -> Iterator[ModelCardRow]:
    columns: list[str | None] | None = None
    for line in text.splitlines():
        if "|" not in line:
            columns = None
            continue
        cells = _cells(line)
        if columns is None:
            start, columns = _find_header(cells)
            if columns is not None:
                yield from _rows_in_line(cells[start + len(columns) :], columns)
        elif (row := _read_row(cells, columns)) is not None:
            yield row


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|")


def _find_header(cells: Sequence[str]) -> tuple[int, list[str | None] | None]:
    """Find a header among cells: where it begins, and the meaning of each of its columns."""
    for start, cell in enumerate(cells):
        if _meaning(cell) != "name":
            continue
        columns: list[str | None] = []
        for title in cells[start : start + _MAX_COLUMNS]:
            if not title.strip():
                break
            columns.append(_meaning(title))
        if len(set(columns) - {None}) >= 3:
            return start, columns
    return 0, None


def _rows_in_line(cells: Sequence[str], columns: Sequence[str | None]) -> Iterator[ModelCardRow]:
    """Read the rows that follow a header in its own line, where the newlines were lost.

    Between two rows stands an empty cell; the first row is the rule below the header.
    """
    width = len(columns)
    for start in range(1, len(cells), width + 1):
        row = cells[start : start + width]
        if cells[start - 1].strip() or len(row) < width:
            return
        if (found := _read_row(row, columns)) is not None:
            yield found


def _read_row(cells: Sequence[str], columns: Sequence[str | None]) -> ModelCardRow | None:
    values: dict[str, Any] = {}
    for meaning, cell in zip(columns, cells, strict=False):
        if _RULE.fullmatch(cell):
            return None
        if meaning in _READERS and meaning not in values:
            value = _READERS[meaning](_plain(cell))
            if value is not None:
                values[meaning] = value
    return ModelCardRow(**values) if len(values) > 1 and "name" in values else None


def _plain(cell: str) -> str:
    """Take links, emphasis and what a terminal would not show out of a cell."""
    text = _LINK.sub(r"\1", cell[:_MAX_CELL_CHARS]).replace("`", "").replace("**", "")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _text(cell: str) -> str | None:
    return None if cell.lower() in ("", "-", "n/a", "none") else cell


def _name(cell: str) -> str | None:
    return cell if cell and " " not in cell and len(cell) <= 300 else None


def _whole(cell: str) -> int | None:
    found = _NUMBER.match(cell)
    return int(float(found[0])) if found else None


def _share(cell: str) -> float | None:
    found = _NUMBER.match(cell)
    return float(found[0]) if found else None


def _group_size(cell: str) -> int | None:
    return -1 if cell.lower() in ("none", "-1") else _whole(cell)


def _yes(cell: str) -> bool | None:
    return {"yes": True, "true": True, "no": False, "false": False}.get(cell.lower())


def _bytes(cell: str) -> int | None:
    found = _SIZE.match(cell)
    return round(float(found[1]) * _UNITS[found[2].upper()]) if found else None


_READERS: dict[str, Callable[[str], object]] = {
    "name": _name,
    "bits": _whole,
    "group_size": _group_size,
    "desc_act": _yes,
    "damp": _share,
    "dataset": _text,
    "seq_len": _whole,
    "num_bytes": _bytes,
    "quant_method": _text,
    "description": _text,
}
_TITLES = {
    "name": ("branch", "name", "filename", "file"),
    "bits": ("bits",),
    "group_size": ("gs", "group size"),
    "desc_act": ("act order", "desc_act"),
    "damp": ("damp %", "damp"),
    "dataset": ("gptq dataset", "awq dataset", "dataset", "calibration dataset"),
    "seq_len": ("seq len", "sequence length"),
    "num_bytes": ("size", "file size"),
    "quant_method": ("quant method", "quant type", "type"),
    "max_ram": ("max ram required",),  # not read; one more title that makes a row a header
    "description": ("desc", "use case", "description", "notes"),
}
_MEANINGS = {title: meaning for meaning, titles in _TITLES.items() for title in titles}


def _meaning(title: str) -> str | None:
    return _MEANINGS.get(title.strip().lower()) if len(title) < 60 else None
