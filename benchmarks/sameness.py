"""Whether the same question gets the same answer: prompts and dialogues, new and from the cache.

    .venv/bin/python -m benchmarks.sameness [SPEC …] [--prompts N] [--dialogues N] [--record]

A real server as it comes, asked over HTTP. Every prompt is asked twice, and every dialogue of two
turns is held twice: first where nothing of it is cached, then where its beginning is. A second turn
follows the first one's answer, and is also asked cold. Then every prompt is asked beside seven
others that come and go. Texts are this repository's own files, cut where chance says; some are
longer than what a step computes. Answers are greedy, and are equal if all their tokens are.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks import record
from benchmarks.server import MODEL, serving
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
NUM_PROMPTS, NUM_DIALOGUES, NUM_OTHERS = 200, 50, 7
ANSWER_TOKENS = 48
SHORTEST = 17  # tokens of a prompt
LONGEST = (100, 100, 100, 100, 400, 400, 400, 1500)  # one of these, as often as it stands here
LIMIT_S = 120.0  # for one answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt got."""

    token_ids: list[int]
    num_cached_tokens: int


@dataclass(slots=True)
class Tally:
    """How often answers were equal, and how often a hit was one."""

    asked: int = 0
    equal: int = 0
    with_cached_tokens: int = 0

    def note(self, cold: Sequence[Answer], hit: Sequence[Answer]) -> None:
        """Count one prompt, or all turns of one dialogue."""
        self.asked += 1
        pairs = zip(cold, hit, strict=True)
        self.equal += all(one.token_ids == other.token_ids for one, other in pairs)
        self.with_cached_tokens += all(answer.num_cached_tokens > 0 for answer in hit)


class Bench:
    """One server, and texts to ask of it."""

    def __init__(self, client: httpx.AsyncClient, tokenizer: Tokenizer, seed: int = 0) -> None:
        self._client = client
        self._chance = random.Random(seed)
        self._salts = map(str, itertools.count())
        paths = [*ROOT.glob("docs/*.md"), *ROOT.glob("engine/**/*.py"), ROOT / "README.md"]
        text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(paths))
        self._ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, shortest: int = SHORTEST, longest: int | None = None) -> list[int]:
        """Cut some tokens out of the texts."""
        length = self._chance.randint(shortest, longest or self._chance.choice(LONGEST))
        start = self._chance.randrange(len(self._ids) - length)
        return self._ids[start : start + length]

    def salt(self) -> str:
        """Name a cache in which there is nothing yet."""
        return next(self._salts)

    async def ask(self, prompt: Sequence[int], salt: str) -> Answer:
        """Ask, greedily."""
        asked = {
            "model": MODEL,
            "prompt": list(prompt),
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "cache_salt": salt,
            "return_token_ids": True,
        }
        answer = await self._client.post("/v1/completions", json=asked)
        told = answer.raise_for_status().json()
        (choice,) = told["choices"]
        assert len(choice["token_ids"]) == ANSWER_TOKENS
        return Answer(choice["token_ids"], told["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def prompts(self, number: int) -> Tally:
        """Ask each prompt twice, nothing else going on."""
        tally = Tally()
        for _ in range(number):
            prompt, salt = self.text(), self.salt()
            tally.note([await self.ask(prompt, salt)], [await self.ask(prompt, salt)])
        return tally

    async def dialogues(self, number: int) -> Tally:
        """Hold each dialogue twice, its second turns once more where nothing is cached."""
        tally = Tally()
        for _ in range(number):
            first, addition, salt = self.text(), self.text(longest=60), self.salt()
            cold = await self.ask(first, salt)
            second = [*first, *cold.token_ids, *addition]
            cold_second = await self.ask(second, self.salt())
            hit_second = await self.ask(second, salt)
            hit_first = await self.ask(first, salt)
            tally.note([cold, cold_second], [hit_first, hit_second])
        return tally

    async def beside_others(self, number: int, num_others: int) -> Tally:
        """Ask each prompt alone, then where it is cached and others come and go all the while."""
        tally = Tally()
        for _ in range(number):
            prompt, salt = self.text(), self.salt()
            alone = await self.ask(prompt, salt)
            others = [
                asyncio.create_task(self.ask(self.text(), self.salt())) for _ in range(num_others)
            ]
            tally.note([alone], [await self.ask(prompt, salt)])
            await asyncio.gather(*others)
        return tally


async def measure(spec: str, url: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way of asking."""
    snapshot = open_snapshot(parse_spec(spec), cache_dir=default_cache_dir(), local_files_only=True)
    tokenizer = Tokenizer.from_file(str(snapshot.folder / "tokenizer.json"))
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
        bench = Bench(client, tokenizer)
        tallies = {
            "prompts, cold and hit": await bench.prompts(arguments.prompts),
            "dialogues of two turns, cold and hit": await bench.dialogues(arguments.dialogues),
            f"prompts, alone and beside {NUM_OTHERS} others": await bench.beside_others(
                arguments.beside, NUM_OTHERS
            ),
        }
    return [
        {
            "spec": spec,
            "asked": name,
            "of": tally.asked,
            "equal": tally.equal,
            "with cached tokens": tally.with_cached_tokens,
        }
        for name, tally in tallies.items()
    ]


def main() -> None:
    """Measure the named variants, or the demo's default branch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("specs", nargs="*", help="variants; by default the demo's default branch")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--dialogues", type=int, default=NUM_DIALOGUES)
    parser.add_argument("--beside", type=int, default=NUM_DIALOGUES)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()

    specs: list[str] = arguments.specs
    if not specs:
        demo = build_demo(default_cache_dir(), [default_branch()], on_progress=print)
        specs = [demo.default_spec]
    rows: list[dict[str, Any]] = []
    for spec in specs:
        with serving(spec, "--served-model-name", MODEL) as server:
            url = f"http://{server.host}:{server.port}"
            rows += asyncio.run(measure(spec, url, arguments))
    table = Table(*rows[0], title="equal answers")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    if arguments.record:
        settings = {
            "answer_tokens": ANSWER_TOKENS,
            "shortest_prompt": SHORTEST,
            "longest_prompts": LONGEST,
            "server": "its defaults",
        }
        print(record.write("sameness", settings, rows))


if __name__ == "__main__":
    main()
