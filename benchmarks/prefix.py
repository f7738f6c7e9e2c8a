"""What the prefix cache saves: the time to the first token of a long prompt, new and repeated.

    .venv/bin/python -m benchmarks.prefix [SPEC] [--record]

Every prompt is sent twice in a row, to an engine that computes nothing else; ratios are taken
prompt by prompt.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
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
    from pathlib import Path

GOAL = 10  # times as fast
PROMPT_TOKENS = 1500
PROMPTS = 5


def measure(spec: str, cache_dir: Path, num_prompts: int) -> dict[str, Any]:
    """Return medians over the prompts, in ms, and of the ratios."""
    engine = IsolatedRunner(Tetrad, spec, cache_dir, 1)
    # The first one warms up.
    pairs = [_first_token_ms(engine, seed) for seed in range(num_prompts + 1)][1:]
    engine.close()
    return {
        "spec": spec,
        "runner": engine.name,
        "new, ms": round(statistics.median(new for new, _ in pairs), 1),
        "repeated, ms": round(statistics.median(repeated for _, repeated in pairs), 1),
        "ratio": round(statistics.median(new / repeated for new, repeated in pairs), 1),
    }


def _first_token_ms(engine: IsolatedRunner, seed: int) -> tuple[float, float]:
    """Send one random prompt twice."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(1000, 40_000, (PROMPT_TOKENS,), generator=generator).tolist()
    new, repeated = (1000 * len(prompt) / engine.prefill(prompt) for _ in range(2))
    return new, repeated


def main() -> None:
    """Measure the named variant, or the demo's with 4 bits."""
    parser = make_parser(__doc__)
    parser.add_argument("spec", nargs="?", help="a variant; by default the demo's with 4 bits")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    cache_dir = default_cache_dir()
    demo = build_demo(cache_dir, GPTQ_BRANCHES[:1], on_progress=print)
    row = measure(arguments.spec or f"{demo.gptq_repo}:main", cache_dir, arguments.prompts)
    table = Table(*row, title=f"first token after {PROMPT_TOKENS} tokens (goal: {GOAL} ×)")
    table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    if arguments.record:
        settings = {
            "prompt_tokens": PROMPT_TOKENS,
            "prompts": arguments.prompts,
            "goal": GOAL,
        }
        print(record.write("prefix", settings, [row]))


if __name__ == "__main__":
    main()
