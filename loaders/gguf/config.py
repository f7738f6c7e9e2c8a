"""Turns a GGUF file's metadata into what config.json would say.

Every number is checked against what it may be, since a model is built from it. What this cannot
express is refused by name rather than left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config_limits import LARGEST_SIZES
from loaders.errors import CheckpointError, UnsupportedModelError
from loaders.gguf.architectures import EMBEDDING, HEAD, architecture_of, count_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loaders.gguf.architectures import Architecture
    from loaders.gguf.header import GgufTensor

_MAX_CONTEXT = LARGEST_SIZES["max_position_embeddings"]
# Gemma 2 of 27B alone scales its queries by hidden size / heads; GGUF does not say so.
_GEMMA2_27B_LAYERS = 46
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
    architecture = architecture_of(metadata)
    settings = _Settings(metadata)
    common = _common(settings, tensors)
    rope = _rope(settings, common["head_dim"])
    if "partial_rotary_factor" in rope and architecture.model_type != "phi3":
        raise UnsupportedModelError(
            f"the GGUF file rotates {settings.get('rope.dimension_count')} of a head's"
            f" {common['head_dim']} values, which {architecture.model_type} models cannot"
        )
    if read_numbers is not None:
        rope |= _rope_factors(settings, common, tensors, read_numbers)
    common["rope_parameters"] = rope
    own = _own(architecture, settings, common)
    config = {**common, **own}
    config.setdefault("model_type", architecture.model_type)
    return {**config, "architectures": [_ARCHITECTURES[config["model_type"]]]}


def file_type(metadata: Mapping[str, Any]) -> str | None:
    """Name the mix of types as people do ("Q4_K_M"), where the file says it."""
    number = metadata.get("general.file_type")
    return _FILE_TYPES.get(number) if isinstance(number, int) else None


@dataclass(frozen=True, slots=True)
class _Settings:
    """The metadata of one architecture, each value checked as it is read."""

    metadata: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        return str(self.metadata["general.architecture"])

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.prefix}.{key}")

    def whole(self, key: str, most: int, *, least: int = 1) -> int:
        found = self.get(key)
        if type(found) is not int or not least <= found <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        found = self.get(key)
        if found is None and default is not None:
            return default
        if type(found) not in (int, float) or not math.isfinite(found) or found <= 0:
            raise self._wrong(key, "a positive number")
        # Stored as float32: the shortest number that rounds to it is the one that was meant.
        return float(f"{found:.7g}")

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        value = self.get(key)
        found = "missing" if value is None else str(value)[:60]
        return CheckpointError(
            f"the GGUF metadata's {self.prefix}.{key} is {found}, expected {expected}"
        )

    def token(self, name: str, vocab_size: int) -> int | None:
        found = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return found if type(found) is int and 0 <= found < vocab_size else None


def _common(settings: _Settings, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    hidden = settings.whole("embedding_length", LARGEST_SIZES["hidden_size"])
    layers = settings.whole("block_count", LARGEST_SIZES["num_hidden_layers"])
    heads = settings.whole("attention.head_count", hidden)
    vocab_size = _vocab_size(tensors, hidden)
    if (found := count_layers(tensors)) != layers:
        raise CheckpointError(
            f"the GGUF metadata says {layers} layers, the file holds tensors of {found}"
        )
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": settings.whole(
            "feed_forward_length", LARGEST_SIZES["intermediate_size"]
        ),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(settings, heads),
        "head_dim": _head_dim(settings, hidden, heads),
        "max_position_embeddings": settings.whole("context_length", _MAX_CONTEXT),
        "bos_token_id": settings.token("bos", vocab_size),
        "eos_token_id": settings.token("eos", vocab_size),
        "pad_token_id": settings.token("padding", vocab_size),
        # As the file has it; a shared matrix is packed a second time, as the head.
        "tie_word_embeddings": False,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "dtype": "bfloat16" if tensors[EMBEDDING].dtype == "BF16" else "float16",
    }


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


def _kv_heads(settings: _Settings, heads: int) -> int:
    if settings.get("attention.head_count_kv") is None:
        return heads
    kv_heads = settings.whole("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"the GGUF metadata says {heads} heads and {kv_heads} key-value heads, which do not"
            " divide them"
        )
    return kv_heads


def _head_dim(settings: _Settings, hidden: int, heads: int) -> int:
    if settings.get("attention.key_length") is None:
        head_dim, rest = divmod(hidden, heads)
        if rest or head_dim % 2:
            raise CheckpointError(
                f"the GGUF metadata's hidden size {hidden} and {heads} heads give no even head size"
            )
        return head_dim
    head_dim = settings.whole("attention.key_length", LARGEST_SIZES["head_dim"], least=2)
    value_dim = settings.get("attention.value_length") or head_dim
    if value_dim != head_dim or head_dim % 2:
        raise UnsupportedModelError(
            f"the GGUF file has keys of {head_dim} and values of {str(value_dim)[:20]}; they must"
            " be alike and even"
        )
    return head_dim


def _rope(settings: _Settings, head_dim: int) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": settings.real("rope.freq_base", 10_000.0),
    }
    rotated = settings.get("rope.dimension_count")
    if rotated is not None and rotated != head_dim:
        rotated = settings.whole("rope.dimension_count", head_dim, least=2)
        rope["partial_rotary_factor"] = rotated / head_dim
    kind = settings.get("rope.scaling.type")
    if settings.get("rope.scale_linear") is not None and kind is None:  # before October 2023
        factor = settings.real("rope.scale_linear")
        return rope if factor == 1 else {**rope, "rope_type": "linear", "factor": factor}
    if kind in (None, "none", "longrope"):  # longrope shows by its tensors
        return rope
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"the GGUF file scales RoPE by {str(kind)[:40]!r}; linear, yarn and longrope are read"
        )
    rope |= {"rope_type": kind, "factor": settings.real("rope.scaling.factor")}
    return rope | _yarn(settings, rope["factor"]) if kind == "yarn" else rope


def _yarn(settings: _Settings, factor: float) -> dict[str, Any]:
    yarn: dict[str, Any] = {
        "original_max_position_embeddings": settings.whole(
            "rope.scaling.original_context_length", _MAX_CONTEXT
        )
    }
    if settings.get("rope.scaling.attn_factor") is not None:
        own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        yarn["attention_factor"] = settings.real("rope.scaling.attn_factor") * own
    for name in ("beta_fast", "beta_slow"):
        if settings.get(f"rope.scaling.yarn_{name}") is not None:
            yarn[name] = settings.real(f"rope.scaling.yarn_{name}")
    return yarn


def _rope_factors(
    settings: _Settings,
    common: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    read_numbers: Callable[[str], Sequence[float]],
) -> dict[str, Any]:
    """Read factors by which single frequencies are divided, from the tensors that hold them.

    One set is Llama 3.1's, which Transformers would compute from four numbers that GGUF does not
    keep; as longrope with twice the same factors it is the same.
    """
    one, long, short = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
    if one in tensors:
        long = short = one
    if long not in tensors or short not in tensors:
        return {}
    found: dict[str, Any] = {"rope_type": "longrope"}
    for key, name in (("long_factor", long), ("short_factor", short)):
        values = [float(value) for value in read_numbers(name)]
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise CheckpointError(f"{name} holds values that are no positive numbers")
        found[key] = values
    original = settings.get("rope.scaling.original_context_length")
    found["original_max_position_embeddings"] = (
        common["max_position_embeddings"]
        if original is None
        else settings.whole("rope.scaling.original_context_length", _MAX_CONTEXT)
    )
    if one in tensors:
        found["attention_factor"] = 1.0
    elif settings.get("rope.scaling.attn_factor") is not None:
        found["attention_factor"] = settings.real("rope.scaling.attn_factor")
    return found


def _own(
    architecture: Architecture, settings: _Settings, common: Mapping[str, Any]
) -> dict[str, Any]:
    """What one architecture's config says beside the common part."""
    if architecture.model_type == "starcoder2":
        return {"norm_epsilon": settings.real("attention.layer_norm_epsilon"), **_window(settings)}
    own: dict[str, Any] = {"rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon")}
    match architecture.model_type:
        case "llama" if settings.get("attention.sliding_window"):
            return {**own, "model_type": "mistral", **_window(settings)}
        case "phi3":
            original = common["rope_parameters"].get("original_max_position_embeddings")
            shorter = {} if original is None else {"original_max_position_embeddings": original}
            return {**own, **_window(settings), **shorter}
        case "gemma2":
            return {**own, **_window(settings), **_gemma2(settings, common)}
    return own


def _window(settings: _Settings) -> dict[str, Any]:
    if not settings.get("attention.sliding_window"):
        return {"sliding_window": None}
    return {"sliding_window": settings.whole("attention.sliding_window", _MAX_CONTEXT)}


def _gemma2(settings: _Settings, common: Mapping[str, Any]) -> dict[str, Any]:
    is_27b = common["num_hidden_layers"] == _GEMMA2_27B_LAYERS
    by_heads = common["hidden_size"] // common["num_attention_heads"]
    return {
        "query_pre_attn_scalar": by_heads if is_27b else common["head_dim"],
        "attn_logit_softcapping": settings.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": settings.real("final_logit_softcapping", 30.0),
    }
