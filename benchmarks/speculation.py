"""What drafting saves one stream, where text repeats itself and where it does not.

    .venv/bin/python -m benchmarks.speculation [SPEC] [--record]

The same engine with drafts and without, each in a process of its own, taking turns on the same
texts: ratios are taken turn by turn. A draft changes no token, except where two logits nearly
tie and rows that are computed together round another way; where the texts part is told.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.command_line import make_parser, use_threads
from benchmarks.isolated import IsolatedRunner
from benchmarks.tetrad import Tetrad
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import GPTQ_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.tetrad import Continuation

SPECULATIVE_TOKENS = 4
NUM_TOKENS = 200
ROUNDS = 5
CODE = """\
class Inventory:
    def __init__(self):
        self.items = {}

    def add(self, name, quantity, price):
        if name in self.items:
            self.items[name]["quantity"] += quantity
        else:
            self.items[name] = {"quantity": quantity, "price": price}

    def remove(self, name, quantity):
        if name not in self.items:
            raise KeyError(name)
        self.items[name]["quantity"] -= quantity
        if self.items[name]["quantity"] <= 0:
            del self.items[name]

    def total(self):
        return sum(item["quantity"] * item["price"] for item in self.items.values())
"""
BEGINNING = CODE[: CODE.index(" quantity, price)")]
# Continued as they stand: so small a model does not repeat code because it is asked to, but goes on
# with what it sees happen. Greedily it soon repeats itself whatever it is told, so the other text
# is drawn, with a seed.
TEXTS = {
    "repeats": (f"# 1\n{CODE}\n# 2, the same\n{CODE}\n# 3, the same\n{BEGINNING}", 0.0),
    "does not": ("A lighthouse keeper found a letter in a bottle. That winter evening he", 1.0),
}


def compare(spec: str, cache_dir: Path, num_drafts: int, rounds: int) -> list[dict[str, Any]]:
    """Measure both kinds of text; one row each."""
    plain = IsolatedRunner(Tetrad, spec, cache_dir, 1)
    drafting = IsolatedRunner(Tetrad, spec, cache_dir, 1, num_drafts)
    rows = [
        {"spec": spec, "text": name} | _compare(plain, drafting, rounds, text, temperature)
        for name, (text, temperature) in TEXTS.items()
    ]
    plain.close()
    drafting.close()
    return rows


def _compare(
    plain: IsolatedRunner, drafting: IsolatedRunner, rounds: int, *given: object
) -> dict[str, Any]:
    turns: list[tuple[Continuation, Continuation]] = [
        (
            plain.call("go_on", *given, NUM_TOKENS),
            drafting.call("go_on", *given, NUM_TOKENS),
        )
        for _ in range(rounds + 1)
    ]
    before, measured = turns[0], turns[1:]  # the first turn warms up
    last = measured[-1]
    drafted = last[1].num_drafted - before[1].num_drafted
    accepted = last[1].num_accepted - before[1].num_accepted
    return {
        "tokens": len(last[0].token_ids),
        "without, tok/s": _median(mine.tokens_per_s for mine, _ in measured),
        "with, tok/s": _median(mine.tokens_per_s for _, mine in measured),
        "ratio": _median((b.tokens_per_s / a.tokens_per_s for a, b in measured), digits=2),
        "drafted": drafted // rounds,
        "accepted": accepted // rounds,
        "parted after": parting(last[0].token_ids, last[1].token_ids),
        "text with drafts": last[1].text,
    }


def parting(one: list[int], other: list[int]) -> int | None:
    """Return after how many tokens two texts part; None if they are the same."""
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _median(values: Iterable[float], digits: int = 1) -> float:
    return round(statistics.median(values), digits)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table, without the texts themselves."""
    heads = [name for name in rows[0] if name not in ("spec", "text with drafts")]
    table = Table(*heads, title=rows[0]["spec"])
    for row in rows:
        table.add_row(*("–" if row[head] is None else str(row[head]) for head in heads))
    Console(width=140).print(table)


def main() -> None:
    """Measure the named variant, or the demo's with 4 bits."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.add_argument("spec", nargs="?", help="a variant; by default the demo's with 4 bits")
    parser.add_argument("--drafts", type=int, default=SPECULATIVE_TOKENS, help="tokens a step")
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    cache_dir = default_cache_dir()
    demo = build_demo(cache_dir, GPTQ_BRANCHES[:1], on_progress=print)
    spec = arguments.spec or f"{demo.gptq_repo}:main"
    rows = compare(spec, cache_dir, arguments.drafts, arguments.rounds)
    show(rows)
    if arguments.record:
        settings = {
            "num_speculative_tokens": arguments.drafts,
            "num_tokens": NUM_TOKENS,
            "rounds": arguments.rounds,
            "texts": TEXTS,
        }
        print(record.write("speculation", settings, rows))


if __name__ == "__main__":
    main()
