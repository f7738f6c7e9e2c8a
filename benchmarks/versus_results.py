"""What `versus` found: medians, ratios turn by turn, and whether the wanted ones are reached."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import record
from benchmarks.versus_peers import OURS, VLLM_BF16

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.versus_peers import Peer

# Ours ÷ that of vLLM with the same type of activations. They hold for CPUs with AMX, where they
# were set.
WANTED = {"1 stream": 1.7, "8 streams": 1.2, "prompt of 1024": 0.8}
PENDING = "pending: no AMX here"
_AMX = frozenset({"amx_tile", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What was to be measured of each server."""

    measures: Sequence[str]  # their names, in order
    turns: int


@dataclass(slots=True)
class Result:
    """What one server did with one variant."""

    peer: Peer
    ready_s: list[float] = field(default_factory=list)  # first with empty caches, then with its own
    rates: dict[str, list[float]] = field(default_factory=dict)  # tokens a second, turn by turn
    apart: dict[str, list[int]] = field(default_factory=dict)  # turns in which streams never met
    memory_mb: float | None = None
    problem: str | None = None  # why it was measured no further


def cpu_has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 in tiles."""
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.split()) >= _AMX


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return ours ÷ theirs, turn by turn, for the turns that both have had."""
    return [mine / theirs for mine, theirs in zip(own, other, strict=False)]


def judge(
    own: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    asked: Asked,
    has_amx: bool,
) -> dict[str, str]:
    """Say of each ratio that is wanted and was asked for whether its median reaches it.

    Fewer turns than were asked for, by either of the two, show nothing.
    """
    verdicts = {}
    for name, wanted in WANTED.items():
        if name not in asked.measures:
            continue
        found = ratios(own.get(name, ()), other.get(name, ()))
        if not found or len(found) < asked.turns:
            verdicts[name] = f"not shown ({_of_turns(len(found), asked)})"
            continue
        median = statistics.median(found)
        reached = "reached" if median >= wanted else "missed"
        verdicts[name] = f"{median:.2f} of {wanted}: {reached if has_amx else PENDING}"
    return verdicts


def rows_of(
    variant: str, results: Sequence[Result], asked: Asked, has_amx: bool
) -> list[dict[str, Any]]:
    """Return what is recorded of one variant: a row for each server."""
    ours = _ours(results)
    return [_row(variant, one, ours, asked, has_amx) for one in results]


def _ours(results: Sequence[Result]) -> Result | None:
    return next((one for one in results if one.peer.name == OURS), None)


def _of_turns(number: int, asked: Asked) -> str:
    return f"{number} of {asked.turns} turns"


def _row(
    variant: str, result: Result, ours: Result | None, asked: Asked, has_amx: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": variant,
        "server": result.peer.name,
        "reads": result.peer.reads,
        "versions": dict(result.peer.versions),
        "threads": result.peer.num_threads,
        "environment": {
            name: record.without_folders(value)
            for name, value in result.peer.environment.items()
            if name != "PYTHONPATH"  # it says where the checkout lies, not what is in it
        },
        "seconds to ready": [round(one, 1) for one in result.ready_s],
        "MB": None if result.memory_mb is None else round(result.memory_mb),
        "problem": None if result.problem is None else record.without_folders(result.problem),
        "tokens a second": {
            name: {"median": _short(statistics.median(rates)), "turns": [*map(_short, rates)]}
            for name, rates in result.rates.items()
        },
    }
    if result.apart:
        row["turns whose streams never ran at once, timed from the first token to the last"] = {
            name: list(turns) for name, turns in result.apart.items()
        }
    if ours is None or result is ours:
        return row
    row["tetrad ÷ this"] = {
        name: [round(one, 3) for one in ratios(ours.rates.get(name, ()), rates)]
        for name, rates in result.rates.items()
    }
    if result.peer.name == VLLM_BF16:
        row["wanted"] = judge(ours.rates, result.rates, asked, has_amx)
    return row


def table_of(title: str, asked: Asked, results: Sequence[Result]) -> Table:
    """Return one variant's table: what was measured down, servers across."""
    table = Table("", *(one.peer.name for one in results), title=title, show_lines=True)
    for name, cells in _lines(asked, results):
        table.add_row(name, *("\n".join(parts) for parts in cells))
    return table


def markdown_of(title: str, asked: Asked, results: Sequence[Result]) -> str:
    """Return the same table as `table_of` in Markdown, below a line that says what it shows."""
    told = (
        f"{title}; medians of {asked.turns} turns, tokens a second, and Tetrad ÷ the other turn by "
        "turn, least · median · greatest:"
    )
    lines = [["", *(one.peer.name for one in results)], ["---"] * (len(results) + 1)]
    lines += [
        [name, *("; ".join(parts) for parts in cells)] for name, cells in _lines(asked, results)
    ]
    return "\n".join([told, "", *(f"| {' | '.join(line)} |" for line in lines)])


def _lines(
    asked: Asked, results: Sequence[Result]
) -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    """Give each line's name and, for each server, what stands in its cell."""
    ours = _ours(results)
    for name in asked.measures:
        yield f"{name}, tokens a second", [_rate_parts(one, ours, name, asked) for one in results]
    for number, name in enumerate(("with empty caches", "again")):
        seconds = [one.ready_s[number : number + 1] for one in results]
        yield f"seconds to ready, {name}", [[_cell(one)] for one in seconds]
    memory: list[list[float]] = [
        [] if one.memory_mb is None else [one.memory_mb] for one in results
    ]
    yield "memory, MB", [[_cell(one)] for one in memory]


def _rate_parts(result: Result, ours: Result | None, name: str, asked: Asked) -> list[str]:
    """Return a rate's median, the ratios, and what is to be known of how they were measured."""
    rates = result.rates.get(name, [])
    parts = [_cell(rates)]
    found = [] if ours is None or result is ours else ratios(ours.rates.get(name, ()), rates)
    if found:
        shown = (min(found), statistics.median(found), max(found))
        parts.append(" · ".join(f"{one:.2f}" for one in shown) + " ×")
    if 0 < len(rates) < asked.turns:
        parts.append(f"({_of_turns(len(rates), asked)})")
    if 0 < len(found) < len(rates):
        parts.append(f"(ratios of {_of_turns(len(found), asked)})")
    if turns := result.apart.get(name):
        parts.append(f"(streams never at once in {_of_turns(len(turns), asked)})")
    return parts


def _cell(values: Sequence[float]) -> str:
    return str(_short(statistics.median(values))) if values else "–"


def _short(value: float) -> float:
    return round(value) if value >= 100 else round(value, 1)
