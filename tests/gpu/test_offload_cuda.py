"""A model of which a part stays on the CPU, with a real device beside it."""

import pytest
import torch

from loaders.load import load
from loaders.model import assembly
from loaders.model.offload import OffloadedLinear
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_model_spread_over_cpu_and_gpu_computes_the_same(tmp_path, monkeypatch):
    folder = write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    prompt = torch.arange(20, device="cuda")[None]
    with torch.inference_mode():
        expected = load(str(folder), device="cuda:0").model(prompt).logits.float()
    real = assembly.choose_offloaded

    def choose(model, device, *, free, cpu_free):
        return real(model, device, free=4_000_000, cpu_free=cpu_free)

    monkeypatch.setattr(assembly, "choose_offloaded", choose)
    spread = load(str(folder), device="cuda:0", cpu_offload=True)
    assert any(isinstance(module, OffloadedLinear) for module in spread.model.modules())
    with torch.inference_mode():
        found = spread.model(prompt).logits.float()
    assert found.device.type == "cuda"
    assert float((found - expected).abs().max() / expected.std()) < 0.1
