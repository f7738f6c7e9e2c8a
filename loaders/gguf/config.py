"""Turns a GGUF file's metadata into what config.json would say.

Every number is checked against what it may be, since a model is built from it. What this cannot
express is refused by name rather than left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config_limits import LARGEST_SIZES
from loaders.errors import CheckpointError, UnsupportedModelError
from loaders.gguf.architectures import EMBEDDING, HEAD, architecture_of, layer_of
from loaders.gguf.known_keys import check_keys
from loaders.gguf.metadata import Settings
from loaders.gguf.rope import make_rope
from loaders.gguf.special_tokens import special_token_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loaders.gguf.architectures import Architecture
    from loaders.gguf.header import GgufTensor

_MAX_CONTEXT = LARGEST_SIZES["max_position_embeddings"]
# Gemma 2 of 27B alone scales its queries by hidden size / heads; GGUF does not say so.
_GEMMA2_27B_LAYERS = 46
_GEMMA2_WINDOW = 4096  # where its files do not say it
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}
# Of `general.file_type`: what people call a mix of types.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 21: "Q2_K_S", 32: "BF16",
}  # fmt: skip


def make_config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    read_numbers: Callable[[str], Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Make config.json's content for a GGUF model.

    read_numbers: gives the values of a small tensor; without it, tensors of RoPE factors are left
    out, as is right where nothing will be computed. Raises CheckpointError for numbers that make
    no sense, UnsupportedModelError for what Transformers cannot express.
    """
    _check_type(metadata)
    architecture = architecture_of(metadata)
    settings = Settings(metadata)
    check_keys(settings)
    common = _common(settings, tensors)
    rope = make_rope(settings, common["head_dim"], tensors, read_numbers)
    if "partial_rotary_factor" in rope and architecture.model_type != "phi3":
        raise UnsupportedModelError(
            f"the GGUF file rotates {settings.get('rope.dimension_count')} of a head's"
            f" {common['head_dim']} values, which {architecture.model_type} models cannot"
        )
    common["rope_parameters"] = rope
    own = _own(architecture, settings, common)
    config = {**common, **own}
    config.setdefault("model_type", architecture.model_type)
    return {**config, "architectures": [_ARCHITECTURES[config["model_type"]]]}


def file_type(metadata: Mapping[str, Any]) -> str | None:
    """Name the mix of types as people do ("Q4_K_M"), where the file says it."""
    number = metadata.get("general.file_type")
    return _FILE_TYPES.get(number) if isinstance(number, int) else None


def _check_type(metadata: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a file that is something beside a model."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(
            f"the GGUF file holds no model: its general.type is {str(kind)[:40]!r}; name the"
            " file of the model itself"
        )


def _common(settings: Settings, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    hidden = settings.whole("embedding_length", LARGEST_SIZES["hidden_size"])
    layers = settings.whole("block_count", LARGEST_SIZES["num_hidden_layers"])
    heads = settings.whole_of_every_layer("attention.head_count", hidden, layers)
    vocab_size = _vocab_size(tensors, hidden)
    _check_layers(layers, tensors)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": settings.whole_of_every_layer(
            "feed_forward_length", LARGEST_SIZES["intermediate_size"], layers
        ),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(settings, heads, layers),
        "head_dim": _head_dim(settings, hidden, heads),
        "max_position_embeddings": settings.whole("context_length", _MAX_CONTEXT),
        "bos_token_id": special_token_id(settings.metadata, "bos", vocab_size),
        "eos_token_id": special_token_id(settings.metadata, "eos", vocab_size),
        "pad_token_id": special_token_id(settings.metadata, "padding", vocab_size),
        # As the file has it; a shared matrix is packed a second time, as the head.
        "tie_word_embeddings": False,
        "dtype": "bfloat16" if tensors[EMBEDDING].dtype == "BF16" else "float16",
    }


def _check_layers(layers: int, tensors: Mapping[str, GgufTensor]) -> None:
    """Raise CheckpointError where a layer has no tensors; those beyond are another's question."""
    found = {layer for layer in map(layer_of, tensors) if layer is not None}
    if missing := sorted(set(range(layers)) - found):
        raise CheckpointError(
            f"the GGUF metadata says {layers} layers, the file holds tensors of {len(found)} and"
            f" none of layer {missing[0]}"
        )


def _vocab_size(tensors: Mapping[str, GgufTensor], hidden: int) -> int:
    embedding = tensors.get(EMBEDDING)
    if embedding is None:
        raise CheckpointError(
            f"the GGUF file holds no {EMBEDDING}; it is a vocabulary only, or a part of a model"
        )
    head = tensors.get(HEAD, embedding)
    for tensor in (embedding, head):
        if len(tensor.shape) != 2 or tensor.shape[1] != hidden:
            raise CheckpointError(
                f"{tensor.name} is {list(tensor.shape)}, expected rows of {hidden} by the GGUF"
                " file's metadata"
            )
    return embedding.shape[0]


def _kv_heads(settings: Settings, heads: int, layers: int) -> int:
    if settings.get("attention.head_count_kv") is None:
        return heads
    kv_heads = settings.whole_of_every_layer("attention.head_count_kv", heads, layers)
    if heads % kv_heads:
        raise CheckpointError(
            f"the GGUF metadata says {heads} heads and {kv_heads} key-value heads, which do not"
            " divide them"
        )
    return kv_heads


def _head_dim(settings: Settings, hidden: int, heads: int) -> int:
    if settings.get("attention.key_length") is None:
        head_dim, rest = divmod(hidden, heads)
        if rest or head_dim % 2:
            raise CheckpointError(
                f"the GGUF metadata's hidden size {hidden} and {heads} heads give no even head size"
            )
    else:
        head_dim = settings.whole("attention.key_length", LARGEST_SIZES["head_dim"], least=2)
    value_dim = settings.get("attention.value_length") or head_dim
    if value_dim != head_dim or head_dim % 2:
        raise UnsupportedModelError(
            f"the GGUF file has keys of {head_dim} and values of {str(value_dim)[:20]}; they must"
            " be alike and even"
        )
    return head_dim


def _own(
    architecture: Architecture, settings: Settings, common: Mapping[str, Any]
) -> dict[str, Any]:
    """What one architecture's config says beside the common part."""
    if architecture.model_type == "starcoder2":
        epsilon = settings.real("attention.layer_norm_epsilon")
        # Biases are those that the file holds, whatever the class would have.
        return {"norm_epsilon": epsilon, "use_bias": False, **_window(settings)}
    own: dict[str, Any] = {"rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon")}
    match architecture.model_type:
        case "llama" if settings.get("attention.sliding_window"):
            return {**own, "model_type": "mistral", **_window(settings)}
        case "phi3":
            original = common["rope_parameters"].get("original_max_position_embeddings")
            shorter = {} if original is None else {"original_max_position_embeddings": original}
            return {**own, **_window(settings), **shorter}
        case "gemma2":
            window = _window(settings)
            if settings.get("attention.sliding_window") is None:
                window = {"sliding_window": _GEMMA2_WINDOW}
            return {**own, **window, **_gemma2(settings, common)}
    return own


def _window(settings: Settings) -> dict[str, Any]:
    if not settings.get("attention.sliding_window"):
        return {"sliding_window": None}
    return {"sliding_window": settings.whole("attention.sliding_window", _MAX_CONTEXT)}


def _gemma2(settings: Settings, common: Mapping[str, Any]) -> dict[str, Any]:
    is_27b = common["num_hidden_layers"] == _GEMMA2_27B_LAYERS
    by_heads = common["hidden_size"] // common["num_attention_heads"]
    return {
        "query_pre_attn_scalar": by_heads if is_27b else common["head_dim"],
        "attn_logit_softcapping": settings.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": settings.real("final_logit_softcapping", 30.0),
    }
