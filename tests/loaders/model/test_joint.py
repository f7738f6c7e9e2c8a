"""Layers that are joined before they are packed: which, and that nobody else can tell."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaForCausalLM

from engine.layers.llama import is_known
from loaders.errors import SelfTestError
from loaders.load import load
from loaders.model import assembly
from loaders.model.kernels import resolve
from loaders.model.kernels.output_slice import OutputSlice
from loaders.model.kernels.triton.levels import INTERPRETED
from loaders.model.kernels.triton_linear import TritonBackend
from loaders.model.opened import open_checkpoint
from loaders.model.packed_linear import packed_layers
from loaders.model.prepare import prepare_layers
from loaders.model.self_test.reference_weights import StoredWeights
from loaders.model.self_test.tokens import using_reference
from tests.gguf_writer import mixed, model_metadata, model_tensors, write_gguf
from tests.grouped_backends import PlainBackend, use_plain_backend
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from loaders.load import LoadedModel

# 8 heads of 32, 2 of them with keys: q has 256 outputs, k and v have 64 each.
SHAPE = {"hidden_size": 256, "intermediate_size": 384}
QKV, MLP, HIDDEN = 256 + 2 * 64, 2 * 384, 256
PROMPT = torch.randint(0, 500, (1, 20), generator=torch.Generator().manual_seed(0))
write_act_order = partial(write_gptq_checkpoint, bits=4, group_size=32, desc_act=True)


def loaded_from(folder: Path, **options: Any) -> LoadedModel:
    return load(str(folder), device="cpu", **{"self_test": False, **options})


@contextmanager
def products_of(model: Any) -> Iterator[dict[str, Tensor]]:
    """Note what every packed layer of the blocks gives while the model runs."""
    found: dict[str, Tensor] = {}

    def note(name: str, _layer: object, _inputs: object, out: Tensor) -> None:
        found[name] = out.clone()

    layers = {name: layer for name, layer in packed_layers(model).items() if ".layers." in name}
    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    yield found
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def run(model: Any) -> dict[str, Tensor]:
    with products_of(model) as found:
        logits = model(input_ids=PROMPT, use_cache=False).logits
    return {**found, "logits": logits}


def assert_same_as_reference(folder: Path, joined: LoadedModel, **options: Any) -> None:
    """Layer by layer and in logits, through Transformers' own forward."""
    reference = loaded_from(folder, backend="reference", **options)
    expected, found = run(reference.model), run(joined.model)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 7 + 1
    for name, product in found.items():
        torch.testing.assert_close(product, expected[name], rtol=2e-3, atol=2e-3, msg=name)


def test_an_act_order_model_computes_joined_what_the_reference_computes(tmp_path, monkeypatch):
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    assert backend.sizes == [QKV, HIDDEN, MLP, HIDDEN] * 2
    assert backend.dtypes == {torch.float32}
    assert joined.provenance.backend == "plain"
    assert_same_as_reference(tmp_path, joined)


def test_downs_order_is_folded_into_what_gate_and_up_give(tmp_path, monkeypatch):
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    use_plain_backend(monkeypatch)
    mlp = loaded_from(tmp_path).model.model.layers[1].mlp
    whole = mlp.gate_proj.fuse_with([mlp.up_proj])
    order = mlp.down_proj.input_permutation
    assert order is not None
    assert torch.equal(whole.output_permutation, torch.cat([order, order + 384]))
    x = torch.randn(3, 256)
    found = whole.matmul(x.index_select(1, whole.input_permutation))
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    wanted = torch.cat([gate, up], dim=1).index_select(1, whole.output_permutation)
    torch.testing.assert_close(found, wanted)
    # What down wants is there without sorting.
    half = found.shape[1] // 2
    product = mlp.down_proj.matmul(torch.nn.functional.silu(found[:, :half]) * found[:, half:])
    torch.testing.assert_close(product, mlp.down_proj(torch.nn.functional.silu(gate) * up))


def test_attention_gives_its_values_in_their_natural_order(tmp_path, monkeypatch):
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    use_plain_backend(monkeypatch)
    attention = loaded_from(tmp_path).model.model.layers[0].self_attn
    assert attention.o_proj.input_permutation is not None
    whole = attention.q_proj.fuse_with([attention.k_proj, attention.v_proj])
    assert (whole.out_features, whole.output_permutation) == (QKV, None)
    assert attention.q_proj.fuse_with([attention.v_proj, attention.k_proj]) is None
    assert attention.q_proj.fuse_with([attention.k_proj]) is None


def test_layers_with_act_orders_of_their_own_stay_apart(tmp_path, monkeypatch):
    write_act_order(
        tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer(), siblings_share_order=False
    )
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    assert backend.sizes == [256, 64, 64, HIDDEN, 384, 384, HIDDEN] * 2
    mlp = joined.model.model.layers[0].mlp
    assert mlp.gate_proj.output_permutation is None
    assert mlp.gate_proj.fuse_with([mlp.up_proj]) is None
    assert_same_as_reference(tmp_path, joined)


def test_layers_of_other_bits_stay_apart_from_their_siblings(tmp_path, monkeypatch):
    rules = {r".*\.layers\.1\..*(v_proj|up_proj)": {"bits": 8}}
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer(), dynamic=rules)
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    apart = [256, 64, 64, HIDDEN, 384, 384, HIDDEN]
    assert backend.sizes == [QKV, HIDDEN, MLP, HIDDEN, *apart]
    assert_same_as_reference(tmp_path, joined)


def test_layers_that_another_backend_takes_are_neither_joined_nor_sorted_for(tmp_path, monkeypatch):
    class Choosy(PlainBackend):
        def refusal(self, shape):
            # k and v, and down.
            refused = shape.out_features == 64 or shape.in_features == 384
            return "takes no such shape" if refused else None

    backend = Choosy()
    monkeypatch.setattr(resolve, "BACKENDS", (backend, *resolve.BACKENDS))
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    joined = loaded_from(tmp_path)
    assert backend.sizes == [256, HIDDEN, MLP] * 2
    mlp = joined.model.model.layers[0].mlp
    assert mlp.gate_proj.fuse_with([mlp.up_proj]).output_permutation is None


def test_layers_that_stay_on_the_cpu_are_neither_joined_nor_sorted_for(tmp_path, monkeypatch):
    left = {f"model.layers.0.{name}" for name in ("self_attn.k_proj", "mlp.down_proj")}

    def prepare(model, mapped, **options):
        return prepare_layers(model, mapped, **{**options, "offloaded": left})

    monkeypatch.setattr(assembly, "prepare_layers", prepare)
    backend = use_plain_backend(monkeypatch)
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    first, second = loaded_from(tmp_path).model.model.layers
    assert backend.sizes == [256, 64, 64, HIDDEN, MLP, HIDDEN, QKV, HIDDEN, MLP, HIDDEN]
    whole = [layer.mlp.gate_proj.fuse_with([layer.mlp.up_proj]) for layer in (first, second)]
    assert [fused.output_permutation is None for fused in whole] == [True, False]


def test_an_unknown_family_is_joined_nowhere(tmp_path, monkeypatch):
    class Subclass(LlamaForCausalLM):
        """May compute something else."""

    backend = use_plain_backend(monkeypatch)

    def prepare(model, mapped, **options):
        model.__class__ = Subclass
        return prepare_layers(model, mapped, **options)

    monkeypatch.setattr(assembly, "prepare_layers", prepare)
    write_awq_checkpoint(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    loaded_from(tmp_path)
    assert backend.sizes == [256, 64, 64, HIDDEN, 384, 384, HIDDEN] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "gelu"},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ],
    ids=["activation", "rotation"],
)
def test_nothing_is_joined_where_transformers_own_layers_will_run(tmp_path, monkeypatch, settings):
    """They would multiply by the whole set for each layer of it."""
    write_awq_checkpoint(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    backend = use_plain_backend(monkeypatch)
    model = loaded_from(tmp_path).model
    assert backend.sizes == [256, 64, 64, HIDDEN, 384, 384, HIDDEN] * 2
    assert not is_known(model)


def test_biases_that_some_siblings_have_are_added_once(tmp_path, monkeypatch):
    model = tiny_qwen2(**SHAPE)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.zero_()
    write_act_order(tmp_path, model, tokenizer=tiny_tokenizer(), stray_bias=True)
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    assert [kernel.bias is not None for kernel in backend.kernels] == [True, *[False] * 3] * 2
    bias = backend.kernels[0].bias
    assert torch.equal(bias[256:320], torch.zeros(64))
    attention = joined.model.model.layers[0].self_attn
    assert attention.k_proj.bias is None
    assert torch.equal(attention.v_proj.bias, bias[320:])
    whole = attention.q_proj.fuse_with([attention.k_proj, attention.v_proj])
    x = torch.randn(2, 256)
    apart = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    found = whole(x)
    torch.testing.assert_close(found, torch.cat(apart, dim=1))
    assert_same_as_reference(tmp_path, joined)


def test_a_bias_is_folded_with_the_outputs_that_it_belongs_to(tmp_path, monkeypatch):
    model = tiny_llama(**SHAPE, mlp_bias=True)
    write_act_order(tmp_path, model, tokenizer=tiny_tokenizer())
    use_plain_backend(monkeypatch)
    assert_same_as_reference(tmp_path, loaded_from(tmp_path))


@pytest.mark.parametrize(
    "write",
    [
        partial(write_awq_checkpoint, group_size=32),
        partial(write_awq_checkpoint, version="gemv", group_size=64),
        partial(write_awq_checkpoint, version="gemv_fast", group_size=64),
        partial(write_compressed_checkpoint, group_size=32, sym=False),
        partial(write_compressed_checkpoint, group_size=32, actorder="group"),
        partial(write_compressed_checkpoint, group_size=None),
        partial(write_gptq_checkpoint, bits=3, group_size=-1, desc_act=True),
    ],
    ids=["gemm", "gemv", "gemv_fast", "compressed-zeros", "compressed-order", "one-scale", "gptq"],
)
def test_every_format_goes_through_the_same_grouped_form(tmp_path, monkeypatch, write):
    write(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    assert backend.sizes == [QKV, HIDDEN, MLP, HIDDEN] * 2
    assert_same_as_reference(tmp_path, joined)


def test_gguf_goes_through_the_same_grouped_form(tmp_path, monkeypatch):
    """Its q and k have their rows in another order than outputs; its v has other bits here."""
    shape = {**SHAPE, "intermediate_size": 512}
    model = tiny_llama(**shape)
    metadata = model_metadata(model, tiny_tokenizer())

    def write(name: str, type_of: Callable[[str], str]) -> Path:
        return write_gguf(tmp_path / name, metadata, model_tensors(model, type_of))

    alike = write("alike.gguf", lambda name: "Q4_K" if name.startswith("blk.") else "F16")
    other_v = write("v.gguf", mixed("Q4_K", "Q6_K", ["attn_v"]))
    for path, sizes in ((alike, [QKV, 256, 1024, 256]), (other_v, [256, 64, 64, 256, 1024, 256])):
        with monkeypatch.context() as context:
            backend = use_plain_backend(context)
            joined = loaded_from(path, cache_dir=tmp_path / "cache")
            in_blocks = [kernel for kernel in backend.kernels if kernel.out_features != 512]
            assert [kernel.out_features for kernel in in_blocks] == sizes * 2
            assert_same_as_reference(path, joined, cache_dir=tmp_path / "cache")


@pytest.mark.skipif(not INTERPRETED, reason="Triton compiles for a GPU here")
def test_triton_kernels_compute_joined_what_the_reference_computes(tmp_path, monkeypatch):
    """In Triton's interpreter, on a CPU that they do not refuse."""
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1}
    model = tiny_qwen2(**shape, num_attention_heads=4)
    write_act_order(tmp_path, model, tokenizer=tiny_tokenizer())
    expected = loaded_from(tmp_path, backend="reference").model
    monkeypatch.setattr(TritonBackend, "refusal", lambda *_: None)
    monkeypatch.setattr(resolve, "BACKENDS", (TritonBackend(),))
    joined = loaded_from(tmp_path).model
    mlp = joined.model.layers[0].mlp
    assert mlp.gate_proj.fuse_with([mlp.up_proj]).output_permutation is not None
    with torch.inference_mode():
        found, wanted = (each(input_ids=PROMPT[:, :3]).logits for each in (joined, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# ── the self-test of joined layers ──────────────────────────────────────────────────────────────


def check_all(loaded: LoadedModel) -> dict[str, bool | None]:
    """Say of each layer whether its live check passes, as the model's own modules multiply."""
    live = loaded.live_layers
    assert live is not None
    return {
        name: all(
            live.read(part, with_many_rows=many).compare(layer).passed
            for part in live.parts(name)
            for many in (True, False)
        )
        for name, layer in packed_layers(loaded.model).items()
        if ".layers." in name
    }


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_joined_layers_pass_the_self_test_and_the_live_check(tmp_path, monkeypatch, make):
    write_act_order(tmp_path, make(**SHAPE), tokenizer=tiny_tokenizer())
    use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path, self_test=True)
    assert all(check_all(joined).values())


def test_a_layer_whose_outputs_are_spoilt_fails_alone(tmp_path, monkeypatch):
    write_act_order(tmp_path, tiny_qwen2(**SHAPE), tokenizer=tiny_tokenizer())
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path, self_test=True)
    up = joined.model.model.layers[1].mlp.up_proj
    assert isinstance(up.kernel, OutputSlice)
    backend.kernels[6].scales[:, 384 + 17] *= 2  # one of up's, wherever it stands
    failed = [name for name, passed in check_all(joined).items() if not passed]
    assert failed == ["model.layers.1.mlp.up_proj"]


def test_a_joined_kernel_that_spoils_one_layers_outputs_fails_the_self_test(tmp_path, monkeypatch):
    class Spoiling(PlainBackend):
        def prepare_grouped(self, weight, bias, dtype):
            kernel = super().prepare_grouped(weight, bias, dtype)
            if weight.out_features == MLP:
                kernel.scales[:, 384:] *= 1.5  # up's
            return kernel

    monkeypatch.setattr(resolve, "BACKENDS", (Spoiling(), *resolve.BACKENDS))
    write_act_order(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    with pytest.raises(SelfTestError) as caught:
        loaded_from(tmp_path, self_test=True)
    assert {check.name.rpartition(".")[2] for check in caught.value.report.failures} == {"up_proj"}


def test_a_bias_that_the_kernel_forgets_fails_the_layers_that_have_one(tmp_path, monkeypatch):
    write_act_order(tmp_path, tiny_qwen2(**SHAPE), tokenizer=tiny_tokenizer())
    backend = use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path, self_test=True)
    backend.kernels[0].bias = None
    failed = [name for name, passed in check_all(joined).items() if not passed]
    assert failed == [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]


def test_the_checkpoints_own_weights_stand_in_for_joined_kernels_with_their_biases(
    tmp_path, monkeypatch
):
    write_act_order(tmp_path, tiny_qwen2(**SHAPE), tokenizer=tiny_tokenizer())
    use_plain_backend(monkeypatch)
    joined = loaded_from(tmp_path)
    weights = StoredWeights(open_checkpoint(tmp_path, None, None), joined.model)
    expected = run(joined.model)["logits"]
    with using_reference(joined.model, weights):
        found = run(joined.model)["logits"]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
