"""What a decode step costs the host beside the device's work, part by part.

    .venv/bin/python -m benchmarks.host_overhead [--record]

The engine's process is the real one: its loop, scheduler, runner and sockets; this process is the
client that drains the reports. 32 sequences decode, nobody comes or goes. What a GPU would do (the
model, sampling, and whatever else a CUDA graph holds) counts as the device's.

Each way of running a step is measured twice. *Without the device's work*, the model and sampling
give prepared answers: as with a GPU, neither weights nor logits push the host's own data out of the
processor's caches. *With it*, a tiny model and real sampling over 32 000 tokens run on the same
core, as on CPU. Figures are medians over the steps, in µs; the medians of parts don't add up to the
median of their sums, which is what counts.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import select
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import record
from benchmarks.stopwatch import Stopwatch
from engine.attention.kv_cache import KVCache
from engine.config import EngineConfig
from engine.core import Engine
from engine.execution import model_runner, static_decode
from engine.execution.model_runner import ModelRunner
from engine.execution.replayed import ReplayedStep
from engine.execution.slot_state import SlotState
from engine.execution.static_decode import StaticDecode
from engine.layers.gpu_llama import GpuLlamaDecoder
from engine.layers.llama import LlamaDecoder
from engine.process.loop import BuiltEngine, EngineLoop, serve
from engine.request import SequenceRequest
from engine.sampling.sampler import SampledRows
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduler import Scheduler
from engine.transport.sockets import ClientSockets
from engine.transport.wire import Ready, Shutdown, StepReport, Work

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from torch import Tensor

    from benchmarks.stopwatch import Lap
    from engine.attention.interface import ModelInput
    from engine.process.loop import ReportProgress

GOAL_US = 300  # a step, all of the host's parts together
NUM_SEQS = 32
VOCAB_SIZE = 32_000
STEPS = 400
# Steps at either end that are left out: there prompts are read, or somebody has ended.
EDGE_STEPS = 50

# Each with the functions that it is made of; the time of one inside another is its own alone.
HOST_PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "take commands": ((EngineLoop, "_take_commands"),),
    "schedule": ((Scheduler, "expire"), (Scheduler, "schedule")),
    "lay out": (
        (model_runner, "model_order"),
        (ModelRunner, "_take_in"),
        (SlotState, "take_in"),
        (KVCache, "clear"),
        (model_runner, "build_model_input"),
        (model_runner, "build_gpu_input"),
        (StaticDecode, "fill"),
    ),
    "plan sampling": ((model_runner, "make_plan"), (model_runner, "plan_key")),
    "keep tokens": ((ModelRunner, "_keep_last_tokens"),),
    "read": ((model_runner, "read_result"),),
    "update": ((Scheduler, "update"),),
    "deliver": ((EngineLoop, "_report"),),
    "between": ((ModelRunner, "_run"), (Engine, "step"), (EngineLoop, "_step")),
}
DEVICE_PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "forward": ((LlamaDecoder, "logits"), (GpuLlamaDecoder, "logits")),
    "sample": ((model_runner, "sample"), (static_decode, "sample")),
    "rest of the graph": ((StaticDecode, "run"), (ReplayedStep, "replay")),
}
GREEDY = SamplingParams(max_tokens=STEPS + 2 * EDGE_STEPS, temperature=0)
DRAWN = SamplingParams(max_tokens=STEPS + 2 * EDGE_STEPS, temperature=0.7, top_p=0.9)
SETTINGS = {"greedy": (GREEDY, GREEDY), "half drawn": (GREEDY, DRAWN)}


def watch_parts() -> Stopwatch:
    """Time all parts of the steps that this process runs from now on."""
    watch = Stopwatch()
    for part, functions in (HOST_PARTS | DEVICE_PARTS).items():
        for owner, name in functions:
            is_whole = (owner, name) == (EngineLoop, "_step")
            watch.watch(part, owner, name, ends_lap=is_whole)
    return watch


class NoModel:
    """A decoder that gives the same logits every time."""

    is_recordable = True

    def __init__(self) -> None:
        self._logits = torch.zeros(NUM_SEQS, 1)

    def logits(self, model_input: ModelInput) -> Tensor:
        """Give as many rows as are asked for."""
        rows = model_input.logits_indices
        return self._logits[: len(model_input.token_ids if rows is None else rows)]


class NoSampling:
    """A sampler that gives the same tokens every time."""

    def __init__(self) -> None:
        self._tokens = torch.arange(NUM_SEQS)
        self._are_fine = torch.ones(NUM_SEQS, dtype=torch.bool)

    def sample(self, logits: Tensor, _plan: object, _state: object) -> SampledRows:
        """Give a token for each row."""
        num_rows = len(logits)
        fine = self._are_fine[:num_rows]
        return SampledRows(self._tokens[:num_rows], is_finite=fine, has_choice=fine, logprobs=None)


def leave_the_device_out() -> None:
    """Have this process's engine neither compute a model nor sample."""
    decoder, sampling = NoModel(), NoSampling()
    modules: list[Any] = [model_runner, static_decode]
    modules[0].make_decoder = lambda *_, **__: decoder
    for module in modules:
        module.sample = sampling.sample


@dataclass(frozen=True, slots=True)
class Setup:
    """How the steps are run."""

    is_eager: bool
    has_device: bool
    sampling: str

    @property
    def description(self) -> dict[str, str]:
        """Describe it for people."""
        return {
            "steps": "eager" if self.is_eager else "static",
            "device's work": "with it" if self.has_device else "without",
            "sampling": self.sampling,
        }


def run_engine(folder: Path, setup: Setup, results: Connection) -> None:
    """Serve the client that listens in a folder; send every step's times in the end."""
    torch.set_num_threads(1)
    if not setup.has_device:
        leave_the_device_out()
    watch = watch_parts()
    serve(folder, functools.partial(build, setup))
    results.send(watch.laps)


def build(setup: Setup, _tell: ReportProgress) -> BuiltEngine:
    """Make an engine around a tiny model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    config = EngineConfig(
        max_num_seqs=NUM_SEQS,
        max_num_batched_tokens=8192,
        max_model_len=2048,
        num_blocks=NUM_SEQS * 128,
        enforce_eager=setup.is_eager,
    )
    return BuiltEngine(Engine(model, config), b"")


def measure(setup: Setup) -> dict[str, Any]:
    """Run the engine in a process of its own, as its client; return medians by part."""
    context = multiprocessing.get_context("spawn")
    results, theirs = context.Pipe(duplex=False)
    sockets = ClientSockets()
    engine = context.Process(target=run_engine, args=(sockets.folder, setup, theirs))
    engine.start()
    theirs.close()  # so that an engine that dies is noticed
    use(sockets, engine, make_requests(setup.sampling))
    laps = results.recv()
    engine.join()
    sockets.close()
    return setup.description | summarise(laps[EDGE_STEPS:][:STEPS])


def make_requests(settings: str) -> list[SequenceRequest]:
    """Make prompts of many lengths, so that blocks fill up at different steps."""
    generator = torch.Generator().manual_seed(1)
    return [
        SequenceRequest(
            sequence_id=index,
            prompt_token_ids=tuple(
                torch.randint(VOCAB_SIZE, (64 + 31 * index,), generator=generator).tolist()
            ),
            params=SETTINGS[settings][index % 2],
        )
        for index in range(NUM_SEQS)
    ]


def use(sockets: ClientSockets, engine: Any, requests: list[SequenceRequest]) -> None:
    """Submit the requests once the engine is ready, read all that it says, and let it end."""
    num_open = len(requests)
    while num_open and engine.is_alive():
        select.select([sockets.fileno], [], [], 1.0)
        for event in sockets.receive(limit=1000):
            if isinstance(event, Ready):
                sockets.send(Work(1, requests, []))
            elif isinstance(event, StepReport):
                num_open -= sum(output.finish_reason is not None for output in event.tokens)
    sockets.send(Shutdown())


def summarise(laps: list[Lap]) -> dict[str, Any]:
    """Return the median of each part, and of the host's and the device's together, in µs."""
    return {
        "host": {part: _median(lap[part] for lap in laps) for part in HOST_PARTS},
        "device": {part: _median(lap[part] for lap in laps) for part in DEVICE_PARTS},
        "host, µs a step": _median(sum(lap[part] for part in HOST_PARTS) for lap in laps),
        "device, µs a step": _median(sum(lap[part] for part in DEVICE_PARTS) for lap in laps),
    }


def _median(seconds: Iterable[float]) -> float:
    return round(1e6 * statistics.median(seconds), 1)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a column for each row, so that the parts can be read downwards."""
    table = Table("µs a step", title=f"{NUM_SEQS} sequences decode, with the device's work or not")
    for row in rows:
        table.add_column("\n".join((row["steps"], row["device's work"], row["sampling"])))
    for side in ("host", "device"):
        for part in rows[0][side]:
            table.add_row(part, *(f"{row[side][part]:.1f}" for row in rows))
        table.add_row(f"{side}, all", *(f"{row[f'{side}, µs a step']:.1f}" for row in rows))
        table.add_section()
    table.add_row("goal, host", *[str(GOAL_US)] * len(rows))
    Console(width=140).print(table)


def main() -> None:
    """Measure both ways of running a step, with and without device and drawing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setups = itertools.product((True, False), (False, True), SETTINGS)
    rows = [measure(Setup(*setup)) for setup in setups]
    show(rows)
    if arguments.record:
        settings = {"num_seqs": NUM_SEQS, "vocab_size": VOCAB_SIZE, "steps": STEPS, "goal": GOAL_US}
        print(record.write("host_overhead", settings, rows))


if __name__ == "__main__":
    main()
