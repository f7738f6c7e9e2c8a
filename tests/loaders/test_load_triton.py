"""Whole checkpoints on Triton's kernels, which the CPU runs in the interpreter for a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loaders.load import load
from loaders.model import prepare
from loaders.model.kernels import launches
from loaders.model.kernels.triton.levels import INTERPRETED
from tests.models import (
    tiny_qwen2,
    tiny_tokenizer,
    write_gptq_checkpoint,
)

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="tests/gpu runs it on a GPU")

# Weights are those of the files to the last bit where scales and zero points are.
MAX_LOGIT_ERROR = 2e-5  # relative to the logits' spread


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Let layers be prepared for a GPU that the CPU stands for."""
    shape_of = prepare._shape_of

    def shape_for_gpu(*args):
        return replace(shape_of(*args), compute_capability=(9, 0))

    monkeypatch.setattr(prepare, "_shape_of", shape_for_gpu)


def logits_of(folder, backend, num_tokens):
    loaded = load(str(folder), device="cpu", backend=backend)
    ids = torch.randint(0, 500, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), launches.counted() as found:
        return loaded.model(ids).logits, found


@pytest.mark.slow
@pytest.mark.usefixtures("as_if_on_a_gpu")
@pytest.mark.parametrize(("num_tokens", "way"), [(3, "linear_few_rows"), (70, "linear_dequantize")])
def test_a_checkpoint_with_act_order_and_biases_gives_the_logits_of_the_reference(
    tmp_path, num_tokens, way
):
    model = tiny_qwen2(num_hidden_layers=1)
    write_gptq_checkpoint(tmp_path, model, desc_act=True, tokenizer=tiny_tokenizer())
    expected, none = logits_of(tmp_path, "reference", num_tokens)
    found, launched = logits_of(tmp_path, "triton", num_tokens)
    assert not none
    assert set(launched) == {way}
    assert float((found - expected).abs().max() / expected.std()) < MAX_LOGIT_ERROR
