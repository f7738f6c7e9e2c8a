"""Tetrad's engine as a runner: without HTTP, in a thread, behind the sockets of a server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.core import Engine
from engine.process.in_thread import running_engine
from engine.process.loop import BuiltEngine
from engine.sampling_params import SamplingParams
from loaders.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from engine.process.loop import ReportProgress


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a text goes on."""

    token_ids: list[int]
    text: str
    tokens_per_s: float  # from the first token to the last
    num_drafted: int  # tokens, by the engine since it began
    num_accepted: int


class Tetrad:
    """One variant on the engine, up to `max_num_seqs` streams."""

    def __init__(
        self, spec: str, cache_dir: Path, max_num_seqs: int, num_speculative_tokens: int = 0
    ) -> None:
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
            max_model_len=2048,
            num_blocks=1024,
            num_speculative_tokens=num_speculative_tokens,
        )

        def build(_tell: ReportProgress) -> BuiltEngine:
            # In the thread that steps, so that it is the only one with OpenMP workers
            # (docs/decisions.md).
            loaded = load(spec, device="cpu", cache_dir=cache_dir)
            self._tokenizer = loaded.tokenizer
            self.name = f"Tetrad ({loaded.provenance.backend})"
            return BuiltEngine(Engine(loaded.model, config), b"")

        self._loop = asyncio.new_event_loop()
        self._engine = running_engine(build)
        self._client = self._loop.run_until_complete(self._engine.__aenter__())

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second once all streams have their first token."""
        return self._loop.run_until_complete(self._decode(prompts, num_tokens))

    def work_off(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second from the first prompt to the last token, all queued."""
        started = time.perf_counter()
        self._loop.run_until_complete(self._work_off(prompts, num_tokens))
        return len(prompts) * num_tokens / (time.perf_counter() - started)

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        started = time.perf_counter()
        self._loop.run_until_complete(self._times(prompt, 1))
        return len(prompt) / (time.perf_counter() - started)

    def go_on(self, text: str, temperature: float, num_tokens: int) -> Continuation:
        """Go on with a text."""
        params = SamplingParams(max_tokens=num_tokens, temperature=temperature, seed=1)
        return self._loop.run_until_complete(self._go_on(text, params))

    async def _go_on(self, text: str, params: SamplingParams) -> Continuation:
        tokenizer: Any = self._tokenizer
        token_ids: list[int] = []
        times: list[float] = []
        async for output in self._client.generate(tokenizer.encode(text), params):
            token_ids.append(output.token_id)
            times.append(time.perf_counter())
        statistics = self._client.statistics
        return Continuation(
            token_ids,
            tokenizer.decode(token_ids),
            (len(times) - 1) / (times[-1] - times[0]),
            statistics.num_drafted_tokens if statistics else 0,
            statistics.num_accepted_tokens if statistics else 0,
        )

    async def _decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        streams = await asyncio.gather(*(self._times(p, num_tokens + 1) for p in prompts))
        started = max(times[0] for times in streams)
        ended = max(times[-1] for times in streams)
        num_decoded = sum(sum(moment > started for moment in times) for times in streams)
        return num_decoded / (ended - started)

    async def _work_off(self, prompts: list[list[int]], num_tokens: int) -> None:
        await asyncio.gather(*(self._times(prompt, num_tokens) for prompt in prompts))

    async def _times(self, prompt: list[int], num_tokens: int) -> list[float]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0)
        stream = self._client.generate(prompt, params)
        return [time.perf_counter() async for _ in stream]
