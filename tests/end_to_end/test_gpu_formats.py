"""Every packed format on a GPU's path, run here: Triton's kernels in the interpreter.

Whole checkpoints, loaded as for a GPU and tested as at every load: logits through Transformers' own
forward, and the engine's greedy answers, against the reference's products.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from engine.config import EngineConfig
from engine.core import Engine
from engine.execution.path import ExecutionPath
from engine.execution.replayed import ReplayedRecorder
from engine.kernels.choice import is_interpreted, step_kernels
from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from loaders.load import load
from loaders.model.offload import wrap_offloaded
from loaders.model.packed_linear import packed_layers
from loaders.model.self_test import tokens
from loaders.quantization.kernel_rules import DeviceFacts
from tests.gguf_writer import model_metadata, model_tensors, write_gguf
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loaders.load import LoadedModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_interpreted(), reason="Triton compiles here; tests/gpu is for that"),
]

GPU = DeviceFacts("cuda", (9, 0))
# Relative to the logits' spread: weights are those of the files to the last bit, or their scales
# and zero points, where these are no whole numbers, are rounded to half precision.
EXACT, ROUNDED = 2e-5, 5e-3
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
PROMPT = [3, 141, 59, 26, 5]
NUM_TOKENS = 2

gptq, awq, compressed = write_gptq_checkpoint, write_awq_checkpoint, write_compressed_checkpoint
FORMATS: dict[str, Callable[..., Path]] = {
    "gptq 2 bits": partial(gptq, bits=2, group_size=32),
    "gptq 3 bits, act order": partial(gptq, bits=3, group_size=32, desc_act=True),
    "gptq 4 bits, act order": partial(gptq, bits=4, group_size=32, desc_act=True),
    "gptq 8 bits, one group": partial(gptq, bits=8, group_size=-1, desc_act=True),
    "gptq 8 bits, wrapped zeros": partial(gptq, bits=8, group_size=32, sym=False),
    "gptq 4 bits, odd groups": partial(gptq, bits=4, group_size=24, sym=False),
    "gptq v2 3 bits": partial(gptq, bits=3, group_size=32, sym=False, checkpoint_format="gptq_v2"),
    "gptq v2 4 bits": partial(gptq, bits=4, group_size=32, sym=False, checkpoint_format="gptq_v2"),
    "gptq, own orders": partial(gptq, group_size=32, desc_act=True, siblings_share_order=False),
    "gptq, packed head": partial(gptq, bits=4, group_size=32, lm_head=True),
    "awq gemm": partial(awq, group_size=32),
    "awq gemv": partial(awq, version="gemv", group_size=32),
    "awq gemv fast": partial(awq, version="gemv_fast", group_size=32),
    "compressed": partial(compressed, group_size=32),
    "compressed, zeros, 8 bits": partial(compressed, group_size=32, sym=False, bits=8),
    "compressed, order, 6 bits": partial(compressed, group_size=32, bits=6, actorder="group"),
}
BLOCKS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0"]


def on_a_gpu(spec: Path, **options: Any) -> LoadedModel:
    options = {"self_test": True, **options}
    loaded = load(str(spec), device="cpu", device_facts=GPU, **options)
    layers = packed_layers(loaded.model)
    assert {layer.backend for name, layer in layers.items() if ".layers." in name} == {"triton"}
    if options["self_test"]:
        assert loaded.self_test is not None
        assert loaded.self_test.passed
    return loaded


def reference(spec: Path, **options: Any) -> Any:
    return load(str(spec), device="cpu", backend="reference", **options).model


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(torch.tensor([PROMPT])).logits[0].float()


@torch.inference_mode()
def answer_of(model: Any) -> tuple[list[int], float]:
    """What the files say, token by token; and the narrowest lead of a first logit, in spreads."""
    ids, leads = list(PROMPT), []
    for _ in range(NUM_TOKENS):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        first, second = logits.topk(2).values
        leads.append(float((first - second) / logits.std()))
        ids.append(int(logits.argmax()))
    return ids[len(PROMPT) :], min(leads)


def engine_answer(model: Any, kernels: str) -> list[int]:
    config = EngineConfig(max_num_seqs=1, max_num_batched_tokens=32, max_model_len=16, num_blocks=4)
    path = ExecutionPath(step_kernels(kernels), ReplayedRecorder(), is_overlapped=True)
    engine = Engine(model, config, path=path)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    sequence = engine.add(
        SequenceRequest(sequence_id=0, prompt_token_ids=tuple(PROMPT), params=params)
    )
    while engine.has_work:
        assert all(isinstance(output, SequenceStarted | TokenOutput) for output in engine.step())
    return list(sequence.output_token_ids)


def check(
    spec: Path, allowed: float, *, kernels: str = "torch", self_test: bool = True, **options: Any
) -> None:
    files, found = (
        reference(spec, **options),
        on_a_gpu(spec, self_test=self_test, **options).model,
    )
    expected = logits_of(files)
    assert float((logits_of(found) - expected).abs().max() / expected.std()) < allowed
    answer, lead = answer_of(files)
    assert lead > 2 * allowed  # else the seed makes no answer that could be told from another
    assert engine_answer(found, kernels) == answer


@pytest.fixture(autouse=True)
def short_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the load's test say fewer tokens: the interpreter takes its time for each."""
    monkeypatch.setattr(tokens, "NUM_TOKENS", 2)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_answers_as_its_files_say(tmp_path: Path, name: str):
    model = (tiny_qwen2 if "own orders" in name or "gemm" in name else tiny_llama)(**SHAPE)
    FORMATS[name](tmp_path, model, tokenizer=tiny_tokenizer())
    kernels = "triton" if name == "gptq 4 bits, act order" else "torch"
    check(tmp_path, ROUNDED if name == "awq gemv fast" else EXACT, kernels=kernels)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_type_of_blocks_answers_as_its_files_say(tmp_path: Path, blocks: str):
    """In one the head is of the embedding's blocks. 256 inputs would take the load's test long."""
    is_tied = blocks == "Q4_K"
    model = tiny_llama(
        **SHAPE | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4},
        tie_word_embeddings=is_tied,
    )

    def type_of(name: str) -> str:
        return blocks if is_tied or name.startswith("blk.") else "F16"

    metadata = model_metadata(model, tiny_tokenizer())
    path = write_gguf(tmp_path / "m.gguf", metadata, model_tensors(model, type_of))
    check(path, ROUNDED, self_test=False, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["dense", "packed", "offloaded"])
def test_what_is_not_packed_runs_beside_what_is(tmp_path: Path, kind: str):
    """A head that is the embedding's, layers that nobody packed, layers that stay on the CPU."""
    write = write_plain_checkpoint if kind == "dense" else FORMATS["gptq 4 bits, act order"]
    write(tmp_path, tiny_llama(**SHAPE, tie_word_embeddings=True), tokenizer=tiny_tokenizer())
    answer, lead = answer_of(reference(tmp_path))
    assert lead > 1
    loaded = load(str(tmp_path), device="cpu", device_facts=GPU)
    assert loaded.provenance.backend == ("dense" if kind == "dense" else "triton")
    if kind == "offloaded":
        left = {f"model.layers.0.{name}" for name in ("self_attn.k_proj", "mlp.down_proj")}
        on_cpu = load(str(tmp_path), device="cpu").model
        for name in left:
            loaded.model.set_submodule(name, on_cpu.get_submodule(name))
        wrap_offloaded(loaded.model, left)
    assert engine_answer(loaded.model, "torch") == answer
