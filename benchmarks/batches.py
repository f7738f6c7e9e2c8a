"""A batch beside eight streams, and alone: what it costs them, and how fast it is.

    .venv/bin/python -m benchmarks.batches [--rounds 5] [--requests 500] [--record]

*Beside*: eight clients stream the demo's answers, in turns without a batch and beside one of so
many requests; the same answers, since tokens that only together make a character come as one event.
Told are the times between two tokens of a stream, their 95th percentile beside ÷ without (turn by
turn, the median of that), and what the batch advanced meanwhile. *Alone*: a batch with nothing
beside it, in turns with the same requests on the engine without a server, queued all at once as
`benchmarks.offline` runs it; generated tokens a second, and the ratio. Nothing else should run
meanwhile, or --threads be fewer than the idle cores: threads that wait for each other's turn made
one round take minutes (2026-11).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.command_line import make_parser, use_threads
from benchmarks.http_client import stream
from benchmarks.isolated import IsolatedRunner
from benchmarks.server import MODEL, Server, serving
from benchmarks.tetrad import Tetrad
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from service.settings.models import VariantSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 5
NUM_REQUESTS = 500
NUM_STREAMS = 8
STREAM_TOKENS = 160  # of each stream in a turn
SKIPPED_TOKENS = 8  # while the streams begin
PROMPT_TOKENS = 64
LINE_TOKENS = 64
ALONE_REQUESTS = 64  # of a turn alone
NUM_SLOTS = 8  # alone, as offline has them
BATCH_SLOTS = 8  # beside the streams'
LIMIT_S = 600.0
GOAL_BESIDE, GOAL_ALONE = 1.1, 0.9
EVERY_STEPS: int = VariantSettings.model_fields["batch_every_steps"].default


def main() -> None:
    """Measure both."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="of a batch beside")
    parser.add_argument("--every", type=int, default=EVERY_STEPS, help="batch_every_steps")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    rows = [
        measure_beside(arguments.rounds, arguments.requests, arguments.every),
        measure_alone(arguments.rounds),
    ]
    for row in rows:
        show(row)
    if arguments.record:
        settings = {
            "model": f"the demo, {default_branch().name}",
            "rounds": arguments.rounds,
            "requests": arguments.requests,
            "batch_every_steps": arguments.every,
        }
        print(record.write("batches", settings, rows))


def show(row: dict[str, Any]) -> None:
    """Print one part's figures."""
    table = Table("figure", "value", title=row["part"])
    for name, value in row.items():
        if name != "part":
            table.add_row(name, str(value))
    Console(width=100).print(table)


@contextlib.contextmanager
def with_batches(max_num_seqs: int, *flags: str) -> Iterator[tuple[Server, httpx.Client]]:
    """Serve the demo, with a folder of its own for batches."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(
            *("--state-dir", folder, "--max-num-seqs", str(max_num_seqs)),
            *("--max-model-len", "1024", "--no-log-requests", *flags),
        ) as server,
        httpx.Client(base_url=f"http://{server.host}:{server.port}", timeout=60) as client,
    ):
        yield server, client


def random_prompts(count: int, seed: int) -> list[list[int]]:
    """Return prompts of token ids that have no beginning in common."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, PROMPT_TOKENS)
    prompts: list[list[int]] = torch.randint(1000, 40_000, shape, generator=generator).tolist()
    return prompts


def start_batch(client: httpx.Client, num_requests: int, seed: int) -> str:
    """Begin a batch; return its id."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": body_of(prompt, LINE_TOKENS),
        }
        for number, prompt in enumerate(random_prompts(num_requests, seed))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    form = {"file": ("batch.jsonl", content)}
    file = client.post("/v1/files", files=form, data={"purpose": "batch"}).raise_for_status()
    asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions"}
    batch_id: str = client.post("/v1/batches", json=asked).raise_for_status().json()["id"]
    return batch_id


def body_of(prompt: list[int], num_tokens: int) -> dict[str, Any]:
    """Return a request of so many tokens, whatever they are."""
    fixed = {"temperature": 0, "ignore_eos": True}
    return {"model": MODEL, "prompt": prompt, "max_tokens": num_tokens, **fixed}


def look(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    """Ask how far a batch is."""
    batch: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return batch


def wait_for(client: httpx.Client, batch_id: str, status: str) -> None:
    """Return once a batch stands so."""
    deadline = time.monotonic() + LIMIT_S
    while (found := look(client, batch_id))["status"] != status:
        if time.monotonic() > deadline or found["status"] == "failed":
            raise RuntimeError(f"the batch is {found}")
        time.sleep(0.05)


# ── beside ──────────────────────────────────────────────────────────────────────────────────────


def measure_beside(rounds: int, num_requests: int, every: int) -> dict[str, Any]:
    """Stream in turns without a batch and beside one."""
    without: list[list[float]] = []
    beside: list[list[float]] = []
    advanced: list[float] = []
    with with_batches(NUM_STREAMS + BATCH_SLOTS, "--batch-every-steps", str(every)) as (
        server,
        client,
    ):
        asyncio.run(stream_all(server, seed=0))  # warms up
        for turn in range(1, rounds + 1):
            without.append(asyncio.run(stream_all(server, seed=turn)))
            batch_id = start_batch(client, num_requests, seed=turn)
            wait_for(client, batch_id, "in_progress")
            began, before = time.monotonic(), generated(server)
            beside.append(asyncio.run(stream_all(server, seed=turn)))
            of_batch = generated(server) - before - NUM_STREAMS * STREAM_TOKENS
            advanced.append(of_batch / (time.monotonic() - began))
            headers = {"content-type": "application/json"}
            client.post(f"/v1/batches/{batch_id}/cancel", headers=headers).raise_for_status()
            wait_for(client, batch_id, "cancelled")
    pairs = list(zip(without, beside, strict=True))
    ratios = [percentile(theirs, 95) / percentile(own, 95) for own, theirs in pairs]
    return {
        "part": f"eight streams beside a batch of {num_requests}",
        "95th percentile without, ms": [round(1000 * percentile(own, 95), 1) for own in without],
        "95th percentile beside, ms": [round(1000 * percentile(own, 95), 1) for own in beside],
        "median without, ms": [round(1000 * percentile(own, 50), 1) for own in without],
        "median beside, ms": [round(1000 * percentile(own, 50), 1) for own in beside],
        "longest beside, ms": [round(1000 * max(own), 1) for own in beside],
        f"beside ÷ without (goal ≤ {GOAL_BESIDE})": round(statistics.median(ratios), 3),
        "tokens a second of the batch": [round(rate, 1) for rate in advanced],
    }


async def stream_all(server: Server, seed: int) -> list[float]:
    """Stream eight answers at once; return the seconds between two tokens of each."""
    answers = await asyncio.gather(
        *(
            stream(server.host, server.port, body_of(prompt, STREAM_TOKENS))
            for prompt in random_prompts(NUM_STREAMS, seed)
        )
    )
    if not all(answer.is_complete for answer in answers):
        raise RuntimeError([answer.error for answer in answers])
    return [
        later - earlier
        for answer in answers
        for earlier, later in zip(
            answer.times[SKIPPED_TOKENS:], answer.times[SKIPPED_TOKENS + 1 :], strict=False
        )
    ]


def generated(server: Server) -> int:
    """Count the tokens that the engine has generated."""
    return int(server.statistics(MODEL)["num_generated_tokens"])


def percentile(values: list[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# ── alone ───────────────────────────────────────────────────────────────────────────────────────


def measure_alone(rounds: int) -> dict[str, Any]:
    """Run a batch with nothing beside it, in turns with the same requests without a server."""
    cache_dir = default_cache_dir()
    demo = build_demo(cache_dir, [default_branch()], on_progress=print)
    offline = IsolatedRunner(Tetrad, demo.default_spec, cache_dir, NUM_SLOTS)
    batch_rates: list[float] = []
    offline_rates: list[float] = []
    with with_batches(NUM_SLOTS, "--num-threads", str(torch.get_num_threads())) as (_, client):
        for turn in range(rounds + 1):
            prompts = random_prompts(ALONE_REQUESTS, seed=1000 + turn)
            offline_rates.append(offline.call("work_off", prompts, LINE_TOKENS))
            began = time.monotonic()
            wait_for(client, start_batch(client, ALONE_REQUESTS, 2000 + turn), "completed")
            batch_rates.append(ALONE_REQUESTS * LINE_TOKENS / (time.monotonic() - began))
    offline.close()
    pairs = zip(batch_rates[1:], offline_rates[1:], strict=True)  # the first turn warms up
    ratio = statistics.median(own / other for own, other in pairs)
    return {
        "part": f"a batch of {ALONE_REQUESTS} alone",
        "batch, tokens a second": [round(rate, 1) for rate in batch_rates[1:]],
        "offline, tokens a second": [round(rate, 1) for rate in offline_rates[1:]],
        f"batch ÷ offline (goal ≥ {GOAL_ALONE})": round(ratio, 3),
    }


if __name__ == "__main__":
    main()
