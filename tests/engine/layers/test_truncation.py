"""A model's first layers alone, and all of them again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.errors import UnsupportedArchitectureError
from engine.layers.truncation import only_first_layers
from tests.engine.tiny_models import FUSED, UNFUSED, make_model

IDS = torch.arange(6).unsqueeze(0)


@pytest.mark.parametrize("kind", ["llama", "phi"])
@torch.inference_mode()
def test_the_first_layers_answer_alone_and_the_model_is_whole_again_afterwards(kind):
    model = make_model({**FUSED, **UNFUSED}[kind])
    total = model.config.num_hidden_layers
    whole = model(IDS, use_cache=False).logits
    with only_first_layers(model, total):
        assert torch.equal(model(IDS, use_cache=False).logits, whole)
    with only_first_layers(model, 1):
        assert not torch.allclose(model(IDS, use_cache=False).logits, whole)
    assert torch.equal(model(IDS, use_cache=False).logits, whole)


def test_a_model_is_whole_again_after_an_error():
    model = make_model(FUSED["llama"])
    layers = model.model.layers
    with pytest.raises(IndexError), only_first_layers(model, 1):
        model.model.layers[1]
    assert model.model.layers is layers


def test_layers_in_no_list_or_in_two_are_refused_by_name():
    model = make_model(FUSED["llama"])
    total = model.config.num_hidden_layers
    model.model.adapters = nn.ModuleList(nn.Identity() for _ in range(total))
    with (
        pytest.raises(UnsupportedArchitectureError, match=f"keeps 2 lists of {total} layers"),
        only_first_layers(model, 1),
    ):
        pass
