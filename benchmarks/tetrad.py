"""Tetrad's engine as a runner: without HTTP, in a thread of its own as the server runs it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.core import Engine
from engine.sampling_params import SamplingParams
from loaders.load import load

if TYPE_CHECKING:
    from pathlib import Path


class Tetrad:
    """One variant on the engine, up to `max_num_seqs` streams."""

    def __init__(self, spec: str, cache_dir: Path, max_num_seqs: int) -> None:
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
            max_model_len=2048,
            num_blocks=1024,
        )
        # In a thread that ends, as in the server, so that the engine's is the only one with OpenMP
        # workers (docs/decisions.md).
        with ThreadPoolExecutor(1) as loader:
            loaded = loader.submit(load, spec, device="cpu", cache_dir=cache_dir).result()
            engine = loader.submit(Engine, loaded.model, config).result()
        self.name = f"Tetrad ({loaded.provenance.backend})"
        self._client = EngineClient(engine)
        self._client.start()

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second once all streams have their first token."""
        return asyncio.run(self._decode(prompts, num_tokens))

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        started = time.perf_counter()
        asyncio.run(self._times(prompt, 1))
        return len(prompt) / (time.perf_counter() - started)

    async def _decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        streams = await asyncio.gather(*(self._times(p, num_tokens + 1) for p in prompts))
        started = max(times[0] for times in streams)
        ended = max(times[-1] for times in streams)
        num_decoded = sum(sum(moment > started for moment in times) for times in streams)
        return num_decoded / (ended - started)

    async def _times(self, prompt: list[int], num_tokens: int) -> list[float]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0)
        stream = self._client.generate(prompt, params)
        return [time.perf_counter() async for _ in stream]
