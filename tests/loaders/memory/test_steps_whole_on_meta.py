"""What whole steps of a GPU's path hold, counted on the meta device, beside what a plan says.

Everything is the real thing but for the launches themselves: packed layers are prepared by the
Triton backend, launchers make what they make, and the kernels do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.attention import prompt
from engine.config import EngineConfig, KVDtype
from engine.execution import decoder
from engine.execution.model_runner import ModelRunner
from engine.execution.path import ExecutionPath
from engine.execution.static_decode import StaticDecode
from engine.kernels import add_norm, paged_decode, rotate_and_store, silu_mul
from engine.kernels.triton_kernels import TritonKernels
from engine.sampling.row_plan import PlanKey
from engine.sampling.state import Need
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk, SlotStart
from loaders.checkpoint.shape import read_shape
from loaders.memory import steps
from loaders.memory.device import Demand, activation_bytes
from loaders.memory.release import MappedFiles
from loaders.model.kernels.triton import dequantize, few_rows
from loaders.model.prepare import prepare_layers
from loaders.quantization.kernel_rules import DeviceFacts
from tests.live_bytes import LiveBytes
from tests.packed_models import FORMATS, answer_for_values, model_of

if TYPE_CHECKING:
    from engine.layers.gpu_llama import GpuLlamaDecoder
    from loaders.checkpoint.shape import ModelShape

META = torch.device("meta")
LENGTH, STEP_TOKENS, BLOCK, ROWS = 4096, 2048, 16, 32
EVERYTHING = PlanKey(~Need(0), 20)
MODELS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32_000},
    "gqa": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "9/3": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
}
models = pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)


class NoLaunch:
    """Stands where a kernel stood."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: None


pytestmark = pytest.mark.slow  # some 40 s together


@pytest.fixture(autouse=True)
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model without memory pass, and everything go the way it goes on a GPU."""
    for module, kernel in (
        (add_norm, "_kernel"),
        (silu_mul, "_kernel"),
        (rotate_and_store, "_kernel"),
        (paged_decode, "paged_decode"),
        (paged_decode, "paged_decode_merge"),
        (few_rows, "few_rows_kernel"),
        (dequantize, "dequantize_kernel"),
    ):
        monkeypatch.setattr(module, kernel, NoLaunch())
    monkeypatch.setattr(paged_decode, "_device_facts", lambda device: (132, True))
    monkeypatch.setattr(decoder, "_check_placement", lambda model: None)
    monkeypatch.setattr(prompt, "takes_flash", lambda *facts: True)


def make_runner(
    monkeypatch: pytest.MonkeyPatch,
    sizes: dict[str, int],
    num_rows: int,
    kv_dtype: KVDtype = KVDtype.FLOAT16,
) -> tuple[ModelRunner, ModelShape]:
    format_ = FORMATS["awq"]
    answer_for_values(monkeypatch, format_)
    model = model_of(format_, "meta", max_position_embeddings=LENGTH, **sizes)
    prepare_layers(
        model,
        MappedFiles(()),
        dtype=torch.float16,
        asked="triton",
        excluded=frozenset(),
        offloaded=frozenset(),
        device_facts=DeviceFacts("cuda", (9, 0)),
        on_progress=lambda *_: None,
    )
    config = EngineConfig(
        max_num_seqs=num_rows,
        max_num_batched_tokens=STEP_TOKENS,
        max_model_len=LENGTH,
        num_blocks=num_rows * LENGTH // BLOCK,
        kv_dtype=kv_dtype,
    )
    shape = read_shape(model.config.to_dict())
    runner = ModelRunner(model, config, ExecutionPath(TritonKernels(), None, is_overlapped=True))
    return runner, shape


def static_decode(runner: ModelRunner, num_rows: int) -> StaticDecode:
    assert runner._kernels is not None
    runner._sampling.reserve(EVERYTHING.needs)
    return StaticDecode(
        num_rows,
        kernels=runner._kernels,
        decoder=runner._decoder,
        cache=runner._cache,
        slots=runner._slots,
        sampling=runner._sampling,
        to_device=runner._to_device,
    )


def watch_layers(decoder: GpuLlamaDecoder, live: LiveBytes) -> list[int]:
    """Note what was held at most before the head runs."""
    head, peaks = decoder._head, []

    def noting(x: torch.Tensor) -> torch.Tensor:
        peaks.append(live.peak)
        return head(x)

    decoder._head = noting
    return peaks


@models
@pytest.mark.parametrize("num_rows", [1, 32, 128])
def test_a_recorded_step_holds_what_the_pool_is_said_to_take(sizes, num_rows, monkeypatch):
    """Parts of split attention are gone before gate and up are there, which counts for both."""
    runner, shape = make_runner(monkeypatch, sizes, num_rows)
    step = static_decode(runner, num_rows)
    with LiveBytes() as live, torch.inference_mode():
        peaks = watch_layers(runner._decoder, live)
        step.run(EVERYTHING)
    layers = steps.layer_bytes(shape, num_rows, num_rows)
    split = steps.split_bytes(shape, num_rows, LENGTH)
    assert 0.9 * layers < peaks[0] <= layers + split
    pool = steps.pool_bytes(shape, num_rows, LENGTH)
    assert 0.8 * pool < live.peak <= pool


def chunk_of(num_rows: int, start: int, *, num_top: int | None = None) -> ScheduledBatch:
    """One sequence reads as much as a step may, beside which the others decode."""
    others = num_rows - 1
    rows = tuple(range(1, num_rows))
    params = SamplingParams(max_tokens=8, temperature=0, prompt_logprobs=num_top)
    tables = [
        tuple(range(row * LENGTH // BLOCK, (row + 1) * LENGTH // BLOCK)) for row in (0, *rows)
    ]
    starts = tuple(
        SlotStart(row, row, params, 0, (1,) * 8, (), table) for row, table in enumerate(tables)
    )
    tokens = (1,) * (STEP_TOKENS - others)
    targets = None if num_top is None else tokens
    chunk = ScheduledChunk(0, 0, start, tokens, 1, prompt_targets=targets)
    return ScheduledBatch(Decodes(rows, rows, (LENGTH - 2,) * others), (chunk,), starts)


def said_of(shape: ModelShape, num_rows: int, kv_dtype: str | None = None) -> int:
    """Say what a step takes; the table of rotations is there before."""
    demand = Demand(LENGTH, num_rows, kv_dtype)
    return activation_bytes(shape, demand, "cuda") - steps.rotation_bytes(shape, LENGTH)


@models
@pytest.mark.parametrize("num_rows", [1, ROWS])
@pytest.mark.parametrize("start", [0, 2048])
def test_a_chunk_holds_no_more_than_activations_are_said_to_take(
    sizes, num_rows, start, monkeypatch
):
    """What is gathered, gate and up, and sampling are never there at once, but counted so."""
    runner, shape = make_runner(monkeypatch, sizes, num_rows)
    with LiveBytes() as live:
        runner.launch(chunk_of(num_rows, start))
    said = said_of(shape, num_rows)
    assert live.peak <= said
    if num_rows == 1:
        assert live.peak > 0.7 * said


@models
@pytest.mark.parametrize("kind", [KVDtype.FP8, KVDtype.FLOAT32, KVDtype.BFLOAT16])
def test_a_prefix_kept_in_another_type_is_counted_while_it_is_read(sizes, kind, monkeypatch):
    runner, shape = make_runner(monkeypatch, sizes, 1, kind)
    prefix = steps.prefix_bytes(shape, LENGTH, 1)
    slots = torch.zeros(LENGTH, dtype=torch.int64, device=META)
    with LiveBytes() as live:
        runner._cache.gather_slots(0, slots)
    read = live.peak - prefix
    assert 0.9 * read <= steps.widening_bytes(shape, prefix, kind.value) <= 1.1 * read
    assert read <= steps.widening_bytes(shape, prefix, kind.value)
    with LiveBytes() as live:
        runner.launch(chunk_of(1, LENGTH - STEP_TOKENS))
    assert live.peak <= said_of(shape, 1, kind.value)


@models
def test_telling_of_a_prompts_tokens_takes_no_more_than_running_it(sizes, monkeypatch):
    runner, shape = make_runner(monkeypatch, sizes, 1)
    with LiveBytes() as live:
        runner.launch(chunk_of(1, 0, num_top=20))
    said = said_of(shape, 1)
    assert live.peak <= said
    assert live.peak < 4 * STEP_TOKENS * shape.vocab_size  # of all its logits
