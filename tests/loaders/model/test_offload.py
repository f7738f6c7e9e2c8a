"""Models of which a part stays on the CPU. Here the other device is the CPU, too.

That leaves untested only what crosses between two real devices: `tests/gpu` has that.
"""

import pytest
import torch
from torch import nn

from engine.config import EngineConfig
from engine.execution.decoder import make_decoder
from engine.execution.model_runner import ModelRunner
from loaders.errors import NotEnoughMemoryError
from loaders.load import load
from loaders.model import assembly, placement
from loaders.model.offload import WEIGHT_SHARE, OffloadedLinear, choose_offloaded
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

CUDA = torch.device("cuda", 0)
SHAPE = {"hidden_size": 256, "intermediate_size": 384}
PROMPT = torch.randint(0, 500, (1, 20), generator=torch.Generator().manual_seed(0))
PLENTY = 10**12


def num_bytes(module):
    return sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))


def free_for(num_weight_bytes):
    return int(num_weight_bytes / WEIGHT_SHARE) + 2


def offloaded_layers(model):
    return [m for m in model.modules() if isinstance(m, OffloadedLinear)]


@pytest.fixture
def small_device(monkeypatch):
    """Have `load` take the CPU for a device without room for half of the layers' weights."""
    monkeypatch.setattr(placement, "resolve_is_spread", lambda asked, *_, **__: asked)
    real = assembly.choose_offloaded

    def choose(model, device, *, free, cpu_free):
        in_layers = sum(num_bytes(layer) for layer in model.model.layers)
        free = free_for(num_bytes(model) - in_layers // 2)
        return real(model, device, free=free, cpu_free=cpu_free)

    monkeypatch.setattr(assembly, "choose_offloaded", choose)


def test_nothing_is_left_behind_where_everything_fits():
    model = tiny_llama(**SHAPE)
    free = free_for(num_bytes(model))
    assert choose_offloaded(model, CUDA, free=free, cpu_free=0) == frozenset()


def test_as_few_layers_as_must_be_are_left_behind_from_the_end():
    model = tiny_llama(**SHAPE)
    last = model.model.layers[1].mlp.down_proj
    free = free_for(num_bytes(model) - num_bytes(last))
    chosen = choose_offloaded(model, CUDA, free=free, cpu_free=PLENTY)
    assert chosen == {"model.layers.1.mlp.down_proj"}
    chosen = choose_offloaded(model, CUDA, free=free - 100, cpu_free=PLENTY)
    assert chosen == {"model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"}


def test_embedding_head_and_norms_never_stay_on_the_cpu():
    model = tiny_llama(**SHAPE)
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    rest = num_bytes(model) - sum(num_bytes(model.get_submodule(name)) for name in linears)
    assert choose_offloaded(model, CUDA, free=free_for(rest), cpu_free=PLENTY) == linears
    with pytest.raises(NotEnoughMemoryError, match=r"cannot lie on the CPU.*75% of 0\.00 GB"):
        choose_offloaded(model, CUDA, free=free_for(rest - 100), cpu_free=PLENTY)


def test_a_cpu_that_cannot_hold_the_rest_is_told_with_the_numbers():
    model = tiny_llama(**SHAPE)
    with pytest.raises(NotEnoughMemoryError, match=r"do not fit on cuda:0, and 0\.00 GB are free"):
        choose_offloaded(model, CUDA, free=free_for(num_bytes(model) // 2), cpu_free=1000)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
@pytest.mark.parametrize("write", [write_gptq_checkpoint, write_plain_checkpoint])
def test_a_spread_model_computes_the_same(tmp_path, small_device, write, make):
    folder = write(tmp_path, make(**SHAPE), tokenizer=tiny_tokenizer())
    whole, spread = (load(str(folder), device="cpu", cpu_offload=on) for on in (False, True))
    assert len(offloaded_layers(spread.model)) == spread.provenance.num_offloaded > 0
    assert whole.provenance.num_offloaded == 0
    with torch.inference_mode():
        assert torch.equal(whole.model(PROMPT).logits, spread.model(PROMPT).logits)


@pytest.mark.parametrize("is_batch_invariant", [False, True])
def test_the_engine_runs_a_spread_model_with_its_own_layers(
    tmp_path, small_device, is_batch_invariant
):
    """Act order included: the engine asks every weight for the order of its inputs."""
    folder = write_gptq_checkpoint(
        tmp_path, tiny_llama(**SHAPE), desc_act=True, tokenizer=tiny_tokenizer()
    )
    config = EngineConfig(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=64,
        num_blocks=8,
        is_batch_invariant=is_batch_invariant,
        cpu_kernels="torch",  # as what is left on the CPU multiplies
    )
    models = [load(str(folder), device="cpu", cpu_offload=on).model for on in (False, True)]
    whole, spread = (ModelRunner(model, config)._decoder for model in models)
    assert type(spread) is type(whole)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(spread._layers, whole._layers, strict=True):
        assert torch.equal(ours._gate_up(x), theirs._gate_up(x))
        assert torch.equal(ours._qkv(x), theirs._qkv(x))


def test_weights_that_stay_are_no_tensors_of_the_model(tmp_path, small_device):
    """The engine takes models that lie on one device; what stays must not count."""
    folder = write_gptq_checkpoint(tmp_path, tiny_qwen2(**SHAPE), tokenizer=tiny_tokenizer())
    model = load(str(folder), device="cpu", cpu_offload=True).model
    for layer in offloaded_layers(model):
        assert not [*layer.parameters(), *layer.buffers()]
    make_decoder(model, max_model_len=64)


def test_dense_layers_of_other_types_multiply_in_their_own(tmp_path):
    linear = nn.Linear(8, 4, dtype=torch.bfloat16)
    x = torch.randn(2, 8, dtype=torch.float16)
    out = OffloadedLinear(linear)(x)
    assert out.dtype == torch.float16
    assert torch.equal(out, linear(x.bfloat16()).half())
    assert OffloadedLinear(linear).fuse_with([OffloadedLinear(linear)]) is None
