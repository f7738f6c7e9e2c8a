"""Part "http": the real server on the 7B model, under load.

Closed load: so many clients, each with its next request once its answer is whole. Open load:
requests come at random times (Poisson), at half the rate that the closed load reached, whether the
server is ready for them or not.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.model_files import model_files
from benchmarks.http_client import stream
from benchmarks.server import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.gpu.context import Context
    from benchmarks.http_client import StreamedAnswer
    from benchmarks.server import Server

MODEL = "measured"


@dataclass(frozen=True, slots=True)
class Load:
    """What clients ask for."""

    num_clients: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float  # of each kind of load
    vocab_size: int

    def body(self) -> dict[str, Any]:
        """Make a request that no other one shares a prefix with."""
        return {
            "model": MODEL,
            "prompt": random.choices(range(5, self.vocab_size), k=self.prompt_tokens),
            "max_tokens": self.answer_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer, with the time at which it was asked for."""

    asked: float
    answer: StreamedAnswer


def run(context: Context) -> None:
    """Serve, load, and tell what clients saw; raises where an answer was not whole."""
    files = model_files(context)
    # The tokenizer that the files bring has 512 pieces; ids above are never a text's.
    load = Load(
        num_clients=2 if context.is_dry else 32,
        prompt_tokens=16 if context.is_dry else 384,
        answer_tokens=8 if context.is_dry else 128,
        seconds=1.0 if context.is_dry else 12.0,
        vocab_size=500,
    )
    flags = [
        str(files.folder),
        *("--served-model-name", MODEL),
        *("--device", context.device),
        *("--max-num-seqs", str(load.num_clients)),
        *("--cache-dir", str(context.workspace)),
    ]
    began = time.perf_counter()
    with serving(*flags) as server:
        context.save(start_s=round(time.perf_counter() - began, 2))
        context.tell("closed load")
        closed = measure(server, load, lambda: _closed(server, load))
        context.save(closed=closed)
        context.tell("open load")
        rate = max(0.5, closed["requests_per_s"] / 2)
        opened = measure(server, load, lambda: _open(server, load, rate))
        context.save(open={**opened, "asked_per_s": round(rate, 2)})
    context.save(
        summary=f"{load.num_clients} clients: {closed['tokens_per_s']} tok/s, first token after"
        f" {closed['ttft_ms']['p50']} ms (p99 {closed['ttft_ms']['p99']})"
    )
    failed = closed["num_failed"] + opened["num_failed"]
    if failed:
        raise CheckFailedError(f"{failed} answers were not whole")


def measure(
    server: Server, load: Load, run_load: Callable[[], Awaitable[list[Timed]]]
) -> dict[str, Any]:
    """Run one kind of load; figures of whole answers."""
    cpu, began = server.api_cpu_s(), time.perf_counter()
    answers = asyncio.run(_finish(run_load()))
    seconds, cpu = time.perf_counter() - began, server.api_cpu_s() - cpu
    whole = [timed for timed in answers if _is_whole(timed.answer, load)]
    num_tokens = sum(timed.answer.completion_tokens or 0 for timed in whole)
    gaps = [
        later - earlier
        for timed in whole
        for earlier, later in zip(timed.answer.times, timed.answer.times[1:], strict=False)
    ]
    return {
        "num_requests": len(answers),
        "num_failed": len(answers) - len(whole),
        "seconds": round(seconds, 2),
        "requests_per_s": round(len(whole) / seconds, 2),
        "tokens_per_s": round(num_tokens / seconds, 1),
        "ttft_ms": _percentiles([t.answer.times[0] - t.asked for t in whole if t.answer.times]),
        "between_events_ms": _percentiles(gaps),
        "api_cpu_us_per_token": round(1e6 * cpu / max(1, num_tokens), 1),
    }


async def _finish(answers: Awaitable[list[Timed]]) -> list[Timed]:
    return await answers


def _is_whole(answer: StreamedAnswer, load: Load) -> bool:
    return answer.is_complete and answer.completion_tokens == load.answer_tokens


async def _ask(server: Server, load: Load) -> Timed:
    asked = asyncio.get_running_loop().time()
    return Timed(asked, await stream(server.host, server.port, load.body()))


async def _closed(server: Server, load: Load) -> list[Timed]:
    end = time.monotonic() + load.seconds

    async def client() -> list[Timed]:
        answers = [await _ask(server, load)]
        while time.monotonic() < end:
            answers.append(await _ask(server, load))
        return answers

    found = await asyncio.gather(*(client() for _ in range(load.num_clients)))
    return [timed for answers in found for timed in answers]


async def _open(server: Server, load: Load, rate: float) -> list[Timed]:
    tasks, end = [], time.monotonic() + load.seconds
    while time.monotonic() < end:
        tasks.append(asyncio.ensure_future(_ask(server, load)))
        await asyncio.sleep(random.expovariate(rate))
    return list(await asyncio.gather(*tasks))


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {"p50": 0.0, "p99": 0.0}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(1000 * cuts[49], 2), "p99": round(1000 * cuts[98], 2)}
