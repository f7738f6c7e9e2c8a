"""Each tensor of a GGUF file has one place, or none for a known reason."""

import pytest

from loaders.errors import CheckpointError, TensorError
from loaders.gguf.architectures import ARCHITECTURES
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Settings
from loaders.gguf.places import place_tensors


def places(*names, dtype="F32", shape=(4, 4), further=0):
    metadata = {"general.architecture": "llama", "llama.nextn_predict_layers": further}
    tensors = {name: GgufTensor(name, dtype, shape, 0) for name in names}
    return place_tensors(ARCHITECTURES["llama"], Settings(metadata), tensors, 2)


def test_tensors_are_placed_by_their_names():
    found = places("token_embd.weight", "blk.1.attn_q.weight", "blk.1.attn_q.bias", "output.bias")
    assert found.left_over == {}
    assert found.names == {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.1.self_attn.q_proj.bias": "blk.1.attn_q.bias",
        "lm_head.bias": "output.bias",
        "lm_head.weight": "token_embd.weight",  # shared
    }


def test_what_the_model_does_without_has_a_reason():
    names = ("rope_freqs.weight", "blk.2.nextn.eh_proj.weight", "blk.3.attn_q.weight")
    found = places(*names, further=1)
    assert found.names == {}
    assert list(found.left_over) == list(names)
    assert len(set(found.left_over.values())) == 3


def test_two_tensors_for_one_place_are_refused():
    with pytest.raises(
        CheckpointError, match=r"blk\.01\.attn_q\.weight and blk\.1\.attn_q\.weight"
    ):
        places("blk.1.attn_q.weight", "blk.01.attn_q.weight")


def test_a_row_of_blocks_is_refused():
    with pytest.raises(TensorError, match=r"attn_norm\.weight is stored as Q8_0, expected F32"):
        places("blk.0.attn_norm.weight", dtype="Q8_0", shape=(32,))
