"""Whether the same question gets the same answer: prompts and dialogues, new and from the cache.

    .venv/bin/python -m benchmarks.sameness [SPEC] [--prompts N] [--dialogues N] [--record]

Every prompt is asked twice, and every dialogue of two turns is held twice: first where nothing of
it is cached, then where its beginning is. A second turn follows the first one's answer, and is also
asked cold. Then every prompt is asked beside seven others that come and go. Texts are this
repository's own files, cut where chance says; answers are greedy.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.command_line import make_parser, use_threads
from engine.config import EngineConfig
from engine.core import Engine
from engine.process.in_thread import running_engine
from engine.process.loop import BuiltEngine
from engine.request import Terms
from engine.sampling_params import SamplingParams
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import GPTQ_BRANCHES
from loaders.load import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.process.loop import ReportProgress
    from engine.transport.client import EngineClient

ROOT = Path(__file__).parent.parent
NUM_PROMPTS, NUM_DIALOGUES, NUM_OTHERS = 200, 50, 7
ANSWER_TOKENS = 48
SHORTEST, LONGEST = 17, 400  # tokens of a prompt


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
    """One engine, with the limits of a server on a CPU, and texts to ask of it."""

    def __init__(self, client: EngineClient, tokenizer: Any, seed: int = 0) -> None:
        self._client = client
        self._chance = random.Random(seed)
        self._salts = map(str, itertools.count())
        paths = [*ROOT.glob("docs/*.md"), *ROOT.glob("engine/**/*.py"), ROOT / "README.md"]
        text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(paths))
        self._ids: list[int] = tokenizer.encode(text)

    def text(self, shortest: int = SHORTEST, longest: int = LONGEST) -> list[int]:
        """Cut some tokens out of the texts; half of them fewer than 100."""
        most = self._chance.choice((min(100, longest), longest))
        length = self._chance.randint(shortest, most)
        start = self._chance.randrange(len(self._ids) - length)
        return self._ids[start : start + length]

    def salt(self) -> str:
        """Name a cache in which there is nothing yet."""
        return next(self._salts)

    async def ask(self, prompt: Sequence[int], salt: str) -> Answer:
        """Ask, greedily."""
        params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True)
        stream = self._client.generate(prompt, params, terms=Terms(cache_salt=salt))
        token_ids = [output.token_id async for output in stream]
        return Answer(token_ids, stream.num_cached_tokens)

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


async def measure(spec: str, arguments: Any) -> list[dict[str, Any]]:
    """Return a row for each way of asking."""
    config = EngineConfig(
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=2048,
        num_blocks=1024,
    )
    tokenizers: list[Any] = []

    def build(_tell: ReportProgress) -> BuiltEngine:
        loaded = load(spec, device="cpu", cache_dir=default_cache_dir())
        tokenizers.append(loaded.tokenizer)
        return BuiltEngine(Engine(loaded.model, config), b"")

    async with running_engine(build) as client:
        bench = Bench(client, tokenizers[0])
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
    """Measure the named variant, or the demo's default branch."""
    parser = make_parser(__doc__)
    parser.add_argument("spec", nargs="?", help="a variant; by default the demo's with 4 bits")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--dialogues", type=int, default=NUM_DIALOGUES)
    parser.add_argument("--beside", type=int, default=NUM_DIALOGUES)
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    spec = arguments.spec
    if spec is None:
        branch = next(one for one in GPTQ_BRANCHES if one.name == "main")
        demo = build_demo(default_cache_dir(), [branch], on_progress=print)
        spec = f"{demo.gptq_repo}:{branch.name}"
    rows = asyncio.run(measure(spec, arguments))
    table = Table(*rows[0], title="equal answers")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    if arguments.record:
        settings = {
            "answer_tokens": ANSWER_TOKENS,
            "prompt_tokens": [SHORTEST, LONGEST],
            "threads": torch.get_num_threads(),
        }
        print(record.write("sameness", settings, rows))


if __name__ == "__main__":
    main()
