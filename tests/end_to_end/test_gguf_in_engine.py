"""GGUF models in the engine, whose own layers join what fits together and leave the rest apart."""

import pytest
import torch

from engine.core import Engine
from engine.layers.llama import LlamaDecoder
from engine.layers.native_llama import NativeLlamaDecoder
from engine.sampling_params import SamplingParams
from loaders.load import load
from tests.engine.tiny_models import generate, make_engine, run_engine
from tests.gguf_writer import (
    add_biases,
    as_stored,
    mixed,
    model_metadata,
    model_tensors,
    write_gguf,
)
from tests.models import tiny_llama, tiny_tokenizer

GREEDY = SamplingParams(max_tokens=16, temperature=0)
# q and k in one type, v in another, as in Q4_K_M; gate in one, up in another, as nobody does.
MIXES = {
    "Q4_K_M": mixed("Q4_K", "Q6_K", ["attn_v", "ffn_down"]),
    "Q3_K_M": mixed("Q3_K", "Q5_K", ["attn_v", "ffn_down"]),
    "Q2_K": mixed("Q2_K", "Q4_K", ["attn_v", "ffn_up"]),
    "one type": mixed("Q4_1", "Q4_1", [], head="Q8_0"),
}
NEAR = 0.06  # of the logits' spread


def num_joined(engine: Engine) -> list[int]:
    """Into how many products each layer's q, k and v go."""
    decoder = engine._runner._decoder
    assert isinstance(decoder, (LlamaDecoder, NativeLlamaDecoder))
    return [len(layer._qkv._weights) for layer in decoder._layers]


def first_near_tie(model, prompt, answer) -> int:
    """Where the two leading logits of Transformers' own run are closer than kernels round."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    leading = logits.topk(2).values
    near = (leading[:, 0] - leading[:, 1]) < NEAR * logits.std()
    return int(near.nonzero()[0]) if bool(near.any()) else len(answer)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("mix", MIXES)
def test_mixed_types_give_the_tokens_of_transformers_own_layers(tmp_path, mix, backend):
    model = tiny_llama(
        dtype=torch.float32, hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    path = write_gguf(
        tmp_path / "m.gguf",
        model_metadata(model, tiny_tokenizer()),
        model_tensors(model, MIXES[mix]),
    )
    loaded = load(str(path), device="cpu", backend=backend, cache_dir=tmp_path).model
    loaded.generation_config.eos_token_id = None
    prompts = [list(range(start, start + 5 + start % 17)) for start in range(5, 200, 13)]
    wanted = [generate(loaded, prompt, GREEDY.max_tokens) for prompt in prompts]
    # The reference is exact; others round activations, differently for many rows at once.
    ends = [
        first_near_tie(loaded, prompt, answer) if backend == "auto" else len(answer)
        for prompt, answer in zip(prompts, wanted, strict=True)
    ]
    assert sum(ends) >= 15  # there is something to compare
    engine = make_engine(loaded)
    one_product = mix == "one type" and backend == "auto"
    assert num_joined(engine) == [1 if one_product else 3] * 2
    found = run_engine(engine, [(prompt, GREEDY) for prompt in prompts])
    for tokens, expected, end in zip(found, wanted, ends, strict=True):
        assert tokens[:end] == expected[:end]


@pytest.mark.parametrize("dtype", ["F16", "Q4_1"])
def test_biases_of_some_projections_are_added_where_products_are_joined(tmp_path, dtype):
    model = tiny_llama(
        dtype=torch.float32, hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    parts = ("0.self_attn.k_proj", "1.self_attn.q_proj", "1.mlp.up_proj")
    add_biases(model, [*(f"model.layers.{part}" for part in parts), "lm_head"])
    path = write_gguf(
        tmp_path / "m.gguf",
        model_metadata(model, tiny_tokenizer()),
        model_tensors(model, lambda _: dtype),
    )
    loaded = load(str(path), device="cpu", cache_dir=tmp_path).model
    loaded.generation_config.eos_token_id = None
    stock = as_stored(model, lambda _: dtype)
    prompts = [list(range(start, start + 9)) for start in range(5, 80, 13)]
    engine = make_engine(loaded)
    assert num_joined(engine) == [1, 1]
    num_compared = 0
    for prompt, found in zip(
        prompts, run_engine(engine, [(prompt, GREEDY) for prompt in prompts]), strict=True
    ):
        wanted = generate(stock, prompt, GREEDY.max_tokens)
        end = first_near_tie(stock, prompt, wanted)
        assert found[:end] == wanted[:end]
        num_compared += end
    assert num_compared >= 6
