from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from engine.attention.interface import ModelInput
from engine.kernels.launches import counted
from engine.layers import fuse_layers
from engine.layers.gpu_llama import GpuLlamaDecoder
from engine.layers.llama import LlamaDecoder
from tests.engine.graph_guard import NothingForTheHost
from tests.engine.ordered_weights import OrderedWeight, put_in_order, store_in_orders
from tests.engine.tiny_models import FUSED, make_model, make_prompts
from tests.engine.whole_sequence import PlainKernels, WholeSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

(PROMPT,) = make_prompts(21)


def own_logits(model: PreTrainedModel) -> torch.Tensor:
    """Transformers' own forward pass."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return logits


def gpu_decoder(model: PreTrainedModel) -> GpuLlamaDecoder:
    decoder = fuse_layers(model, max_model_len=64, is_batch_invariant=False, kernels=PlainKernels())
    assert isinstance(decoder, GpuLlamaDecoder)
    return decoder


def step(rows: torch.Tensor | None = None) -> ModelInput:
    return ModelInput(
        token_ids=torch.tensor(PROMPT),
        position_ids=torch.arange(len(PROMPT)),
        logits_indices=rows,
        attention=WholeSequence(),
    )


@torch.inference_mode()
def logits_of(decoder: GpuLlamaDecoder, rows: torch.Tensor | None = None) -> torch.Tensor:
    return decoder.logits(step(rows))


@pytest.mark.parametrize("family", FUSED)
def test_logits_of_every_known_family_are_transformers_own(family: str):
    model = make_model(FUSED[family])
    wanted = own_logits(model)
    torch.testing.assert_close(logits_of(gpu_decoder(model)), wanted, rtol=1e-4, atol=1e-4)


def test_only_the_rows_that_are_asked_for_come_out():
    model = make_model(FUSED["qwen2"])
    wanted = own_logits(model)
    rows = torch.tensor([20, 3])
    torch.testing.assert_close(
        logits_of(gpu_decoder(model), rows), wanted[rows], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ["llama with biases and its own head size", "qwen3, tied"])
@pytest.mark.parametrize("are_shared", [True, False])
@pytest.mark.parametrize("is_folded", [True, False])
@pytest.mark.parametrize("can_fuse", [True, False])
def test_orders_change_nothing_of_what_comes_out(
    family: str, are_shared: bool, is_folded: bool, can_fuse: bool
):
    model = make_model(FUSED[family])
    wanted = own_logits(model)
    store_in_orders(model, are_shared=are_shared, is_folded=is_folded, can_fuse=can_fuse)
    torch.testing.assert_close(logits_of(gpu_decoder(model)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "gathers"),
    [
        ({}, 0),
        ({"can_fuse": False}, 0),
        ({"is_folded": False}, 1),  # of what gate and up made together
        ({"are_shared": False}, 3),  # keys, values, up
    ],
)
def test_a_layer_gathers_only_where_orders_part(changes: dict[str, bool], gathers: int):
    model = make_model(FUSED["llama"])
    store_in_orders(model, **changes)
    decoder = gpu_decoder(model)
    with counted() as launches:
        logits_of(decoder)
    assert launches["gather_input"] == gathers * len(decoder._layers)


def test_a_gate_that_is_folded_beside_an_up_that_is_not_is_gathered_once():
    model = make_model(FUSED["llama"])
    wanted = own_logits(model)
    mlp: Any = model.model.layers[0].mlp
    order = torch.randperm(128, generator=torch.Generator().manual_seed(5))
    put_in_order(mlp, "gate_proj", None, order)
    put_in_order(mlp, "down_proj", order)
    decoder = gpu_decoder(model)
    with counted() as launches:
        found = logits_of(decoder)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert launches["gather_input"] == 1


def test_a_head_with_an_order_gets_it_from_the_last_norm():
    model = make_model(FUSED["llama"])
    wanted = own_logits(model)
    put_in_order(model, "lm_head", torch.randperm(64, generator=torch.Generator().manual_seed(5)))
    decoder = gpu_decoder(model)
    with counted() as launches:
        found = logits_of(decoder)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert launches["gather_input"] == 0


def test_a_layer_is_four_products():
    model = make_model(FUSED["llama"])
    store_in_orders(model)
    decoder = gpu_decoder(model)
    logits_of(decoder)
    for layer in decoder._layers:
        products = [layer._qkv, layer._output, layer._mlp.gate_up, layer._mlp.down]
        weights = [weight for product in products for weight in product._weights]
        assert all(isinstance(weight, OrderedWeight) for weight in weights)
        assert [weight.calls.total() for weight in weights] == [1, 1, 1, 1]  # type: ignore[attr-defined]


def test_the_live_check_gives_and_gets_the_models_own_orders():
    model = make_model(FUSED["qwen2"])
    own = copy.deepcopy(model)
    store_in_orders(model)
    seen: list[str] = []
    for linears in gpu_decoder(model).linears():
        parts = [own.get_submodule(name) for name in linears.names]
        x = torch.randn(3, parts[0].in_features)  # type: ignore[arg-type]
        for found, part in zip(linears.multiply(x).split(linears.sizes, 1), parts, strict=True):
            torch.testing.assert_close(found, part(x))
        seen += linears.names
    linear_names = [name for name, part in own.named_modules() if isinstance(part, nn.Linear)]
    assert sorted(seen) == sorted(linear_names)


def test_a_step_makes_nothing_that_a_graph_cannot_hold():
    model = make_model(FUSED["qwen3, tied"])
    store_in_orders(model, are_shared=False, is_folded=False)
    decoder = gpu_decoder(model)
    attended = torch.randn(len(PROMPT), 128)

    class Recorded(WholeSequence):
        def attend_fused(self, *_: Any, **__: Any) -> torch.Tensor:
            return attended

    given = step()
    with torch.inference_mode(), NothingForTheHost():
        decoder.logits(ModelInput(given.token_ids, given.position_ids, None, Recorded()))


def test_the_embedding_table_is_not_copied_and_its_half_precision_widened_on_the_cpu():
    model = make_model(FUSED["qwen3, tied"]).half()
    table = model.get_input_embeddings().weight
    decoder = gpu_decoder(model)
    assert decoder._embedding.data_ptr() == table.data_ptr()
    assert decoder._dtype == torch.float32
    assert logits_of(decoder).dtype == torch.float32


def test_batch_invariant_answers_take_the_layers_that_go_row_by_row():
    model = make_model(FUSED["llama"])
    decoder = fuse_layers(model, max_model_len=64, is_batch_invariant=True, kernels=PlainKernels())
    assert isinstance(decoder, LlamaDecoder)
