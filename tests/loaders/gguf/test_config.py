"""What a GGUF file's header amounts to, as plans and the loader both read it, without weights."""

import pytest

from loaders.errors import CheckpointError, UnsupportedModelError
from loaders.gguf.config import make_config
from loaders.gguf.header import GgufTensor

PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "attn_norm")


def config_of(architecture="llama", extra_tensors=(), **keys):
    own = {
        "block_count": 2,
        "context_length": 8192,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    metadata = {f"{architecture}.{key}": value for key, value in own.items()}
    general = {key: metadata.pop(key) for key in list(metadata) if ".general." in key}
    metadata["general.architecture"] = architecture
    metadata |= {key.removeprefix(f"{architecture}."): value for key, value in general.items()}
    names = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in PARTS]
    tensors = {
        name: GgufTensor(name, "F32", (512, 64), 0)
        for name in ("token_embd.weight", *names, *extra_tensors)
    }
    return make_config(metadata, tensors)


def test_numbers_listed_for_each_layer_are_read_where_all_are_alike():
    found = config_of(
        attention__head_count=(4, 4),
        attention__head_count_kv=(2, 2),
        feed_forward_length=(128, 128),
    )
    sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [found[name] for name in sizes] == [4, 2, 128]
    with pytest.raises(UnsupportedModelError, match=r"layers differ in llama\.feed_forward_length"):
        config_of(feed_forward_length=(128, 256))


def test_tensors_tell_the_size_of_the_vocabulary():
    assert config_of(vocab_size=2**24)["vocab_size"] == 512


def test_gemma_2_has_its_window_where_the_file_says_none():
    assert config_of("gemma2")["sliding_window"] == 4096
    assert config_of("gemma2", attention__sliding_window=1024)["sliding_window"] == 1024


def test_values_of_another_size_than_keys_are_refused_whichever_the_file_names():
    with pytest.raises(UnsupportedModelError, match="keys of 16 and values of 32"):
        config_of(attention__value_length=32)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_that_holds_no_model_says_so(kind):
    with pytest.raises(
        UnsupportedModelError, match=f"holds no model: its general.type is '{kind}'"
    ):
        config_of(general__type=kind)


def test_a_setting_or_tensor_without_a_place_is_refused_before_weights_are_there():
    with pytest.raises(UnsupportedModelError, match=r"llama\.attention\.clamp_kqv is 8\.0"):
        config_of(attention__clamp_kqv=8.0)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.scale.*seems to be a scale"):
        config_of(extra_tensors=["blk.0.attn_q.scale"])


def test_a_layer_without_tensors_is_named():
    with pytest.raises(
        CheckpointError, match=r"says 4 layers, .* tensors of 3 and none of layer 2"
    ):
        config_of(block_count=4, extra_tensors=["blk.3.attn_q.weight"])
