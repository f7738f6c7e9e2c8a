"""A GPU's whole path, run here: the kernels in Triton's interpreter, steps recorded and replayed.

Packed layers come from the loader, joined and in their orders; the answers must be those of
Transformers' own `generate` on layers that multiply as the files say.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu.kernel_table import kernel_names

pytest.importorskip("triton", reason="Triton is not installed")

from engine.config import EngineConfig
from engine.core import Engine
from engine.execution.path import ExecutionPath
from engine.execution.replayed import ReplayedRecorder
from engine.kernels import launches as engine_launches
from engine.kernels.choice import is_interpreted, step_kernels
from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from loaders.load import load
from loaders.model.kernels import launches as loader_launches
from loaders.model.kernels.triton_linear import TritonBackend
from tests.engine.tiny_models import generate
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_interpreted(), reason="Triton compiles here; tests/gpu is for that"),
]

LAYERS = 2
NUM_TOKENS = 6
PROMPTS = [[3, 141, 59, 26, 5], [97, 93]]

SMALL = EngineConfig(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=32, num_blocks=8)
# One sequence: more tokens than a product of few rows takes, and room for two splits.
LONG = EngineConfig(max_num_seqs=1, max_num_batched_tokens=96, max_model_len=96, num_blocks=8)

# What a decode step launches, and nothing else: the head is not packed, and the last norm is its.
EXPECTED = Counter(
    add_norm=2 * LAYERS + 1,
    rotate_and_store=LAYERS,
    paged_decode=LAYERS,
    silu_mul=LAYERS,
    linear_few_rows=4 * LAYERS,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of grouped queries, every linear layer with an act order of its own."""
    model = tiny_llama(
        hidden_size=128,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_hidden_layers=LAYERS,
    )
    return write_gptq_checkpoint(
        tmp_path_factory.mktemp("gptq"),
        model,
        group_size=32,
        desc_act=True,
        tokenizer=tiny_tokenizer(),
    )


@pytest.fixture
def packed_for_gpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """The model as a GPU has it; only that there is none is overlooked."""
    monkeypatch.setattr(TritonBackend, "refusal", lambda *_: None)
    return load(str(checkpoint), device="cpu", backend="triton").model


def wanted(checkpoint: Path) -> list[list[int]]:
    """Transformers' own greedy answers, from the reference's products."""
    model = load(str(checkpoint), device="cpu", backend="reference").model
    model.generation_config.eos_token_id = None
    return [generate(model, prompt, NUM_TOKENS) for prompt in PROMPTS]


def gpu_engine(
    model: PreTrainedModel, recorder: ReplayedRecorder, config: EngineConfig = SMALL
) -> Engine:
    path = ExecutionPath(kernels=step_kernels("triton"), recorder=recorder, is_overlapped=True)
    return Engine(model, config, path=path)


def run(
    engine: Engine, prompts: list[list[int]] = PROMPTS, num_tokens: int = NUM_TOKENS
) -> tuple[list[list[int]], list[Counter[str]]]:
    """Answer the prompts; and what each step launched."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0)
    sequences = [
        engine.add(SequenceRequest(sequence_id=i, prompt_token_ids=tuple(prompt), params=params))
        for i, prompt in enumerate(prompts)
    ]
    steps: list[Counter[str]] = []
    while engine.has_work:
        with engine_launches.counted() as own, loader_launches.counted() as linear:
            outputs = engine.step()
        assert all(isinstance(output, SequenceStarted | TokenOutput) for output in outputs)
        steps.append(own + linear)
    engine.scheduler.check()
    return [sequence.output_token_ids for sequence in sequences], [step for step in steps if step]


def test_an_act_order_model_answers_as_the_files_say_and_takes_the_way_it_should(
    checkpoint: Path, packed_for_gpu: PreTrainedModel
):
    recorder = ReplayedRecorder()
    engine = gpu_engine(packed_for_gpu, recorder)
    assert recorder.num_recorded > 0

    found, launches = run(engine)

    assert found == wanted(checkpoint)
    prompts, *decodes = launches
    assert decodes == [EXPECTED] * (NUM_TOKENS - 1)
    assert prompts["prompt_attention_sdpa"] > 0
    assert prompts["gather_input"] == 0
    assert "paged_decode" not in prompts


def test_the_table_of_kernels_holds_all_that_are_launched_and_no_other(
    packed_for_gpu: PreTrainedModel,
):
    _, launches = run(gpu_engine(packed_for_gpu, ReplayedRecorder(), LONG), [[*range(4, 74)]], 2)
    launched = set(sum(launches, Counter()))
    assert launched - {"prompt_attention_sdpa"} == kernel_names()
