"""What the prefix cache saves: the time to the first token of a prompt, new and known.

    .venv/bin/python -m benchmarks.prefix [SPEC] [--against CHECKOUT] [--record]

*Repeated*: every prompt is sent twice in a row. *Second turn*: a prompt that was answered, its
answer and some tokens more, as in a dialogue. The engine computes nothing else, and ratios are
taken prompt by prompt. `--against` names a checkout of an older commit (`git
worktree add`), whose engine is asked in turns with this one's, by this script.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

GOAL = 10  # times as fast
PROMPT_TOKENS = 1500
FIRST_TURN_TOKENS, ANSWER_TOKENS, ADDED_TOKENS = 500, 200, 40
PROMPTS = 5
ROOT = Path(__file__).resolve().parent.parent


class Side:
    """The engine of one checkout, in a process of its own."""

    def __init__(self, checkout: Path, spec: str) -> None:
        # Not above: this file is run with a checkout's packages, which may be older than that.
        from benchmarks.checkout import CheckoutProcess

        self._process = CheckoutProcess(checkout, __file__, "--serve", spec)
        self._process.hear()  # that it is loaded

    def ask(self, prompt: list[int], num_tokens: int = 1) -> dict[str, Any]:
        """Return the time to the first token in ms, the tokens that were known, and the answer."""
        told: dict[str, Any] = self._process.ask([prompt, num_tokens])
        return told

    def close(self) -> None:
        """End the process."""
        self._process.close()


def serve(spec: str) -> None:
    """Answer prompts from the standard input, with the engine that is imported here."""
    # What is imported here is what both checkouts have.
    import structlog

    from engine.config import EngineConfig
    from engine.core import Engine
    from engine.process.in_thread import running_engine
    from engine.process.loop import BuiltEngine
    from engine.sampling_params import SamplingParams
    from loaders.cache import default_cache_dir
    from loaders.load import load

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    config = EngineConfig(
        max_num_seqs=1, max_num_batched_tokens=2048, max_model_len=2048, num_blocks=1024
    )

    def build(_tell: object) -> Any:
        loaded = load(spec, device="cpu", cache_dir=default_cache_dir())
        return BuiltEngine(Engine(loaded.model, config), b"")

    async def run() -> None:
        async with running_engine(build) as client:
            tell({})
            while line := await asyncio.to_thread(sys.stdin.readline):
                prompt, num_tokens = json.loads(line)
                params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
                began, first_at, answer = time.perf_counter(), 0.0, []
                stream = client.generate(prompt, params)
                async for output in stream:
                    first_at = first_at or time.perf_counter()
                    answer.append(output.token_id)
                first_ms = 1000 * (first_at - began)
                tell({"ms": first_ms, "known": stream.num_cached_tokens, "answer": answer})

    def tell(told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)

    asyncio.run(run())


def some_tokens(seed: int, number: int) -> list[int]:
    """Return random tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 40_000, (number,), generator=generator).tolist()


def ask_round(side: Side, seed: int) -> dict[str, float]:
    """Ask one side each kind of prompt; return what it found."""
    prompt = some_tokens(seed, PROMPT_TOKENS)
    new, repeated = side.ask(prompt), side.ask(prompt)
    first = some_tokens(10_000 + seed, FIRST_TURN_TOKENS)
    answer = side.ask(first, ANSWER_TOKENS)["answer"]
    second = [*first, *answer, *some_tokens(20_000 + seed, ADDED_TOKENS)]
    turn = side.ask(second)
    return {
        "new, ms": new["ms"],
        "repeated, ms": repeated["ms"],
        "new ÷ repeated": new["ms"] / repeated["ms"],
        "known tokens of repeated": repeated["known"],
        "second turn, ms": turn["ms"],
        "known tokens of second turn": turn["known"],
    }


def measure(spec: str, against: Path | None, num_prompts: int) -> list[dict[str, Any]]:
    """Return the medians of each side, and those of now ÷ before, prompt by prompt."""
    sides = {"now": Side(ROOT, spec)}
    if against is not None:
        sides["before"] = Side(against.resolve(), spec)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for seed in range(num_prompts + 1):
        for name in sorted(sides, reverse=bool(seed % 2)):
            asked = ask_round(sides[name], seed)
            if seed:  # the first one warms up
                found[name].append(asked)
    for side in sides.values():
        side.close()
    rows = [{"code": name, **medians(rounds)} for name, rounds in found.items()]
    if against is not None:
        pairs = zip(found["now"], found["before"], strict=True)
        ratios = [{key: now[key] / before[key] for key in now} for now, before in pairs]
        rows.append({"code": "now ÷ before", **medians(ratios, 2)})
    return [{"spec": spec, **row} for row in rows]


def medians(rounds: list[dict[str, float]], digits: int = 1) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: round(statistics.median(one[key] for one in rounds), digits) for key in rounds[0]}


def main() -> None:
    """Measure the named variant, or the demo's with 4 bits."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        return
    from benchmarks import record
    from benchmarks.command_line import make_parser, use_threads
    from benchmarks.serving import show
    from loaders.cache import default_cache_dir
    from loaders.demo import build_demo
    from loaders.demo.branches import GPTQ_BRANCHES

    parser = make_parser(__doc__)
    parser.add_argument("spec", nargs="?", help="a variant; by default the demo's with 4 bits")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--against", type=Path, help="checkout of an older commit")
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    demo = build_demo(default_cache_dir(), GPTQ_BRANCHES[:1], on_progress=print)
    spec = arguments.spec or f"{demo.gptq_repo}:main"
    rows = measure(spec, arguments.against, arguments.prompts)
    for row in rows:
        show({"part": row["code"], **row})
    if arguments.record:
        settings = {
            "prompt_tokens": PROMPT_TOKENS,
            "first_turn_tokens": FIRST_TURN_TOKENS,
            "answer_tokens": ANSWER_TOKENS,
            "added_tokens": ADDED_TOKENS,
            "prompts": arguments.prompts,
            "goal": GOAL,
            "against": record.commit_of(arguments.against),
        }
        print(record.write("prefix", settings, rows))


if __name__ == "__main__":
    main()
