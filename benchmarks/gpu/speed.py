"""Part "speed": a 4-bit act-order model of CodeLlama 7B's shape, loaded as any, on the engine.

Tokens a second of decoding, by batch, and of reading a prompt; then which kernels each of these
spends its time in. What share of the device's limit they are, and of the target, is
`report`'s to say, who knows what "ceilings" found.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.gpu.limit import CODELLAMA_7B, ModelShape
from benchmarks.gpu.model_files import TINY, model_files
from benchmarks.gpu.streams import (
    Bound,
    decode_steps,
    greedy,
    measure_decode,
    measure_prefill,
    run_to_the_end,
)
from engine.config import EngineConfig
from engine.core import Engine
from loaders.load import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.gpu.context import Context
    from loaders.load import LoadedModel

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    shape: ModelShape
    batches: tuple[int, ...]
    context: int  # about so many tokens are before each that is decoded
    prompt: int  # tokens of a prompt that is read alone
    decode: Bound  # in steps; half of them come before `context` is reached
    prefill: Bound  # in prompts

    @property
    def engine_config(self) -> EngineConfig:
        """Size the engine for it."""
        most = max(self.batches)
        longest = max(self.prompt, self.context + 2 * self.decode.repetitions) + most + BLOCK_SIZE
        each = self.context + self.decode.repetitions + most + 2 * BLOCK_SIZE
        return EngineConfig(
            max_num_seqs=most,
            max_num_batched_tokens=max(self.prompt, most),
            max_model_len=longest,
            num_blocks=max(most * each, longest) // BLOCK_SIZE + 1,
            block_size=BLOCK_SIZE,
            has_prefix_cache=False,
        )


PLAN = Plan(CODELLAMA_7B, (1, 8, 32, 128), 512, 2048, Bound(128, 10.0), Bound(5, 8.0))
DRY_PLAN = Plan(TINY, (1, 4), 48, 128, Bound(16, 1.0), Bound(2, 1.0))
PROFILED_STEPS, KEPT_KERNELS = 10, 20


def run(context: Context) -> None:
    """Write the model, load it, and measure; whatever is known already is kept."""
    plan = DRY_PLAN if context.is_dry else PLAN
    loaded = _load(context, plan)
    began = time.perf_counter()
    engine = Engine(loaded.model, plan.engine_config)
    context.save(engine_s=round(time.perf_counter() - began, 2))
    rows: list[dict[str, Any]] = []
    for batch in plan.batches:
        context.tell(f"decode, {batch} together")
        rows.append({"what": "decode", "batch": batch, **_decode(engine, plan, batch)})
        context.save(rows=rows)
    context.tell(f"prefill, {plan.prompt} tokens")
    rows.append({"what": "prefill", "tokens": plan.prompt, **_prefill(engine, plan)})
    context.save(rows=rows)
    if not context.is_dry:
        context.save(peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2))
    for row in rows:
        context.tell(f"profile of {row['what']}, {row.get('batch', 1)} together")
        row["profile"] = profile(engine, plan, row, context)
        context.save(rows=rows)


def _load(context: Context, plan: Plan) -> LoadedModel:
    files = model_files(context, plan.shape)
    context.save(shape=asdict(plan.shape), checkpoint_bytes=files.num_bytes, write_s=files.write_s)
    phases = _Phases(context)
    began = time.perf_counter()
    loaded = load(
        str(files.folder),
        device=context.device,
        self_test=True,
        cache_dir=context.workspace,
        on_progress=phases.enter,
    )
    phases.end()
    seconds = time.perf_counter() - began
    backend = loaded.provenance.backend
    context.save(
        load_s=round(seconds, 2),
        load_phases_s=phases.seconds,
        backend=backend,
        dtype=loaded.provenance.dtype,
        summary=f"{files.num_bytes / 1e9:.2f} GB loaded in {seconds:.1f} s, backend {backend}",
    )
    return loaded


def profile(
    engine: Engine, plan: Plan, row: dict[str, Any], context: Context
) -> list[dict[str, Any]]:
    """Say where a measured row's steps spend the device's time, longest first; µs a step."""
    kinds = [ProfilerActivity.CPU if context.is_dry else ProfilerActivity.CUDA]
    num_steps = 2 if context.is_dry else PROFILED_STEPS
    with _steps_of(engine, plan, row, num_steps) as step, torch_profile(activities=kinds) as found:
        for _ in range(num_steps):
            step()
        if not context.is_dry:
            torch.cuda.synchronize()
    events = [
        {
            "kernel": event.key[:120],
            "launches_a_step": round(event.count / num_steps, 2),
            "us_a_step": round(_own_us(event, is_dry=context.is_dry) / num_steps, 2),
        }
        for event in found.key_averages()
    ]
    return sorted(events, key=lambda event: -event["us_a_step"])[:KEPT_KERNELS]


@contextlib.contextmanager
def _steps_of(
    engine: Engine, plan: Plan, row: dict[str, Any], num_steps: int
) -> Iterator[Callable[[], object]]:
    """Give what runs a step of the kind that a row measured."""
    if row["what"] == "prefill":
        yield lambda: run_to_the_end(engine, [_prompt(plan, plan.prompt)], greedy(1))
        return
    prompts = [_prompt(plan, plan.context) for _ in range(row["batch"])]
    with decode_steps(engine, prompts, num_steps) as step:
        yield step


def _own_us(event: Any, *, is_dry: bool) -> float:
    return float(event.self_cpu_time_total if is_dry else event.self_device_time_total)


class _Phases:
    """Seconds of each phase of loading."""

    def __init__(self, context: Context) -> None:
        self.seconds: dict[str, float] = {}
        self._context = context
        self._phase: str | None = None
        self._began = 0.0

    def enter(self, phase: str, _percent: float | None) -> None:
        """Note that a phase goes on, or that another begins."""
        if phase == self._phase:
            return
        self.end()
        self._context.tell(phase)
        self._phase, self._began = phase, time.perf_counter()

    def end(self) -> None:
        """Note that the last phase is over."""
        if self._phase is not None:
            self.seconds[self._phase] = round(time.perf_counter() - self._began, 2)


def _decode(engine: Engine, plan: Plan, batch: int) -> dict[str, Any]:
    length = plan.context - plan.decode.repetitions // 2
    prompts = [_prompt(plan, length) for _ in range(batch)]
    rate = measure_decode(engine, prompts, plan.decode)
    return {
        "context": round(rate.context),
        "tokens_per_s": round(rate.tokens_per_s, 1),
        "ms_a_step": round(1000 * batch / rate.tokens_per_s, 3),
        "steps": rate.num_steps,
    }


def _prefill(engine: Engine, plan: Plan) -> dict[str, Any]:
    rate = measure_prefill(engine, lambda: _prompt(plan, plan.prompt), plan.prefill)
    return {"tokens_per_s": round(rate, 1)}


def _prompt(plan: Plan, length: int) -> list[int]:
    return random.choices(range(plan.shape.vocab_size), k=length)
