"""Small random models and the checkpoints that published repositories would hold of them.

Every layout that the loaders read can be written here, with any combination of its parameters.
The rounding is plain (to the nearest step): the tests compare what is loaded with what the files
say, not with the model they came from. Packing is the product's own, held to account by
`tests/dequantize.py`, which reads the files in another way.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from loaders.demo.repository import commit_branch
from loaders.quantization.packing import (
    CheckpointFormat,
    pack_awq,
    pack_gptq_codes,
    pack_gptq_zeros,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SettingsFile = Literal["config.json", "quantize_config.json"]
AwqVersion = Literal["gemm", "gemv", "gemv_fast"]

VOCAB_SIZE = 512
BOS, EOS, TURN_START, TURN_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TRAINING_TEXT = Path(__file__).parent.parent / "loaders" / "demo" / "evaluation_text.txt"


@dataclass(frozen=True)
class Branch:
    """One row of a card's table of provided files."""

    name: str
    bits: int
    group_size: int
    desc_act: bool


# The six branches of the first card, with its exact parameters; damp 0.1 and symmetric throughout.
CARD_BRANCHES = (
    Branch("main", 4, 128, False),
    Branch("gptq-4bit-32g-actorder_True", 4, 32, True),
    Branch("gptq-4bit-64g-actorder_True", 4, 64, True),
    Branch("gptq-4bit-128g-actorder_True", 4, 128, True),
    Branch("gptq-8bit--1g-actorder_True", 8, -1, True),
    Branch("gptq-8bit-128g-actorder_True", 8, 128, True),
)


@dataclass(frozen=True)
class TinyRepositories:
    """A hub cache that holds the random model as the first card's repository, and as AWQ 128g."""

    cache_dir: Path
    gptq_repo: str
    awq_repo: str

    def specs(self) -> list[str]:
        """Name every variant, as `repo:branch`."""
        return [f"{self.gptq_repo}:{branch.name}" for branch in CARD_BRANCHES] + [
            f"{self.awq_repo}:main"
        ]


def tiny_llama(*, seed: int = 0, dtype: torch.dtype = torch.float16, **settings: Any) -> Any:
    """Make a random two-layer Llama: hidden 512, 8 heads, 2 key-value heads."""
    config = LlamaConfig(**{**_SHAPE, **settings})
    return _filled(LlamaForCausalLM(config), seed, dtype)


def tiny_qwen2(*, seed: int = 0, dtype: torch.dtype = torch.float16, **settings: Any) -> Any:
    """Make a random two-layer Qwen2, whose q, k and v projections have biases."""
    config = Qwen2Config(**{**_SHAPE, **settings})
    return _filled(Qwen2ForCausalLM(config), seed, dtype)


_SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _filled(model: PreTrainedModel, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """Fill so that activations stay near 1 and logits spread, which makes the argmax clear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.1, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
            elif "embed_tokens" in name:
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                gain = 4.0 if "lm_head" in name else 1.0
                parameter.normal_(0.0, gain * parameter.shape[1] ** -0.5, generator=generator)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, 3])
    return model.to(dtype).requires_grad_(False).eval()


def tiny_tokenizer(*, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Make a real byte-level tokenizer of 512 pieces: any text encodes, after one `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(_TRAINING_TEXT)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN_START, TURN_END],
        model_max_length=_SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = chat_template
    return made


def write_plain_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    *,
    dtype: torch.dtype = torch.float16,
    tokenizer: PreTrainedTokenizerFast | None = None,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write an unquantised checkpoint."""
    tensors = {name: tensor.to(dtype) for name, tensor in _state_of(model).items()}
    _write_files(folder, model, tensors, {}, ["config.json"], dtype, tokenizer, max_shard_bytes)
    return folder


def write_gptq_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    *,
    bits: int = 4,
    group_size: int = 128,
    desc_act: bool = False,
    sym: bool = True,
    checkpoint_format: CheckpointFormat = "gptq",
    damp_percent: float = 0.1,
    lm_head: bool = False,  # quantise the output head too
    dynamic: Mapping[str, Mapping[str, Any]] | None = None,  # GPTQModel's per-module rules
    modules_in_block_to_quantize: Sequence[Sequence[str]] | None = None,
    siblings_share_order: bool = True,  # False gives q, k and v an act order each
    stray_bias: bool = False,  # zero biases on every packed layer, as AutoGPTQ wrote for Llama
    store_g_idx: bool = True,  # False leaves it out, as old converters did without act order
    settings_in: Sequence[SettingsFile] = ("config.json", "quantize_config.json"),
    dtype: torch.dtype = torch.float16,
    tokenizer: PreTrainedTokenizerFast | None = None,
    max_shard_bytes: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a GPTQ checkpoint of the model, as AutoGPTQ and GPTQModel lay it out.

    An asymmetric one carries zero points 0 and 2**bits - 1 too, which v1 stores wrapped.
    """
    orders = _Orders(seed, siblings_share_order)
    tensors = {name: tensor.to(dtype) for name, tensor in _state_of(model).items()}
    for name, linear in _linears(model, lm_head, modules_in_block_to_quantize):
        parameters = _apply_rules(dynamic or {}, name, {"bits": bits, "group_size": group_size})
        if parameters is None:
            continue
        rounded = _round(
            tensors.pop(f"{name}.weight").float().t(),
            bits=parameters["bits"],
            g_idx=orders.g_idx(name, linear.in_features, parameters["group_size"], desc_act),
            sym=sym,
        )
        tensors |= {
            f"{name}.qweight": pack_gptq_codes(rounded.codes, parameters["bits"]),
            f"{name}.qzeros": pack_gptq_zeros(
                rounded.zeros, parameters["bits"], checkpoint_format=checkpoint_format
            ),
            f"{name}.scales": rounded.scales,
        }
        if store_g_idx:
            tensors[f"{name}.g_idx"] = rounded.g_idx
        if stray_bias and linear.bias is None:
            tensors[f"{name}.bias"] = torch.zeros(linear.out_features, dtype=dtype)

    settings: dict[str, Any] = {
        "bits": bits,
        "group_size": group_size,
        "damp_percent": damp_percent,
        "desc_act": desc_act,
        "static_groups": False,
        "sym": sym,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    }
    if checkpoint_format != "gptq":
        settings["checkpoint_format"] = checkpoint_format
    if dynamic:
        settings["dynamic"] = {pattern: dict(overrides) for pattern, overrides in dynamic.items()}
    if lm_head:
        settings["lm_head"] = True
    if modules_in_block_to_quantize:
        settings["modules_in_block_to_quantize"] = [list(m) for m in modules_in_block_to_quantize]
    _write_files(folder, model, tensors, settings, settings_in, dtype, tokenizer, max_shard_bytes)
    return folder


def write_awq_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    *,
    group_size: int = 128,
    version: AwqVersion = "gemm",
    modules_to_not_convert: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float16,
    tokenizer: PreTrainedTokenizerFast | None = None,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write a 4-bit AWQ checkpoint with zero points of the model."""
    tensors = {name: tensor.to(dtype) for name, tensor in _state_of(model).items()}
    for name, linear in _linears(model, lm_head=False, within_blocks=None):
        if any(part in name for part in modules_to_not_convert or ()):
            continue
        size = linear.in_features if group_size == -1 else group_size
        rounded = _round(
            tensors.pop(f"{name}.weight").float().t(),
            bits=4,
            g_idx=torch.arange(linear.in_features) // size,
            sym=False,
        )
        packed = _AWQ_PACKERS[version](rounded, size)
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
    settings = {
        "bits": 4,
        "group_size": group_size,
        "modules_to_not_convert": list(modules_to_not_convert) if modules_to_not_convert else None,
        "quant_method": "awq",
        "version": version,
        "zero_point": True,
    }
    _write_files(
        folder, model, tensors, settings, ["config.json"], dtype, tokenizer, max_shard_bytes
    )
    return folder


def write_compressed_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    *,
    bits: int = 4,
    group_size: int | None = 128,  # -1: one scale an output; None: one for the whole layer
    sym: bool = True,
    actorder: str | None = None,
    own_groups: Mapping[str, int] | None = None,  # target → bits, in groups of 32
    dtype: torch.dtype = torch.float16,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a checkpoint as llm-compressor does, in compressed-tensors' "pack-quantized"."""
    orders = _Orders(seed=0, siblings_share_order=True)
    tensors = {name: tensor.to(dtype) for name, tensor in _state_of(model).items()}
    for name, linear in _linears(model, lm_head=False, within_blocks=None):
        # Layers named in full come before patterns.
        own = sorted((own_groups or {}).items(), key=lambda entry: entry[0].startswith("re:"))
        own_bits = next((b for target, b in own if _targets(target, name)), None)
        width, size = (bits, group_size) if own_bits is None else (own_bits, 32)
        weight = tensors.pop(f"{name}.weight").float().t()
        g_idx = orders.g_idx(name, linear.in_features, size or -1, actorder == "group")
        whole = weight if size is not None else weight.reshape(-1, 1)
        index = g_idx if size is not None else torch.zeros(len(whole), dtype=torch.int64)
        rounded = _round(whole, bits=width, g_idx=index, sym=sym)
        codes = rounded.codes.reshape(weight.shape)
        tensors |= {
            f"{name}.weight_packed": _bit_rows(codes.t(), width),
            f"{name}.weight_scale": rounded.scales.t() if size is not None else rounded.scales[0],
            f"{name}.weight_shape": torch.tensor(linear.weight.shape),
        }
        if not sym:
            tensors[f"{name}.weight_zero_point"] = _bit_rows(rounded.zeros, width).t()
        if actorder == "group":
            tensors[f"{name}.weight_g_idx"] = rounded.g_idx
    scheme = {"type": "int", "symmetric": sym, "dynamic": False, "actorder": actorder}
    strategy = {None: "tensor", -1: "channel"}.get(group_size, "group")
    base = {**scheme, "num_bits": bits, "strategy": strategy, "group_size": group_size}
    groups = {"group_0": {"targets": ["Linear"], "weights": base, "input_activations": None}}
    for number, (target, width) in enumerate((own_groups or {}).items(), start=1):
        weights = {**scheme, "num_bits": width, "strategy": "group", "group_size": 32}
        groups[f"group_{number}"] = {"targets": [target], "weights": weights}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
    _write_files(folder, model, tensors, settings, ["config.json"], dtype, tokenizer, None)
    return folder


def _targets(target: str, name: str) -> bool:
    """Whether a group's target names a layer."""
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target == name


def write_tiny_repositories(cache_dir: Path) -> TinyRepositories:
    """Write the random model's GPTQ repository with the first card's branches, and its AWQ one."""
    repositories = TinyRepositories(cache_dir, "tetrad/Tiny-Llama-GPTQ", "tetrad/Tiny-Llama-AWQ")
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with TemporaryDirectory(dir=cache_dir) as staging:
        for branch in CARD_BRANCHES:
            folder = write_gptq_checkpoint(
                Path(staging),
                model,
                bits=branch.bits,
                group_size=branch.group_size,
                desc_act=branch.desc_act,
                tokenizer=tokenizer,
            )
            commit_branch(cache_dir, repositories.gptq_repo, branch.name, folder)
        folder = write_awq_checkpoint(Path(staging), model, tokenizer=tokenizer)
        commit_branch(cache_dir, repositories.awq_repo, "main", folder)
    return repositories


@dataclass(frozen=True)
class _Rounded:
    codes: Tensor  # uint8 [in, out]
    zeros: Tensor  # uint8 [groups, out]
    scales: Tensor  # float16 [groups, out]
    g_idx: Tensor  # int32 [in]


def _round(weight: Tensor, *, bits: int, g_idx: Tensor, sym: bool) -> _Rounded:
    """Round a matrix [in, out] to the nearest step of each group."""
    highest = 2**bits - 1
    num_groups = int(g_idx.max()) + 1
    scales = torch.empty(num_groups, weight.shape[1])
    zeros = torch.empty(num_groups, weight.shape[1])
    for group in range(num_groups):
        members = weight[g_idx == group]
        if sym:
            scales[group] = 2 * members.abs().amax(0) / highest
            zeros[group] = 2 ** (bits - 1)
        else:
            scales[group] = (members.amax(0) - members.amin(0)) / highest
            zeros[group] = (-members.amin(0) / scales[group]).round().clamp(0, highest)
    if not sym:
        zeros[:, 0::16] = 0
        zeros[:, 1::16] = highest
    scales = scales.clamp(min=1e-4).half()
    codes = (weight / scales.float()[g_idx]).round() + zeros[g_idx]
    return _Rounded(
        codes=codes.clamp(0, highest).to(torch.uint8),
        zeros=zeros.to(torch.uint8),
        scales=scales,
        g_idx=g_idx.to(torch.int32),
    )


def _pack_gemm(rounded: _Rounded, group_size: int) -> dict[str, Tensor]:
    return {
        "qweight": pack_awq(rounded.codes),
        "qzeros": pack_awq(rounded.zeros),
        "scales": rounded.scales,
    }


def _pack_gemv(rounded: _Rounded, group_size: int) -> dict[str, Tensor]:
    """Everything by output; as many groups as AutoAWQ's kernel reads, the surplus zero."""
    extra = _stored_groups(rounded, group_size) - len(rounded.scales)
    return {
        "qweight": _bit_rows(rounded.codes.t(), 4),
        "qzeros": _bit_rows(pad(rounded.zeros, (0, 0, 0, extra)).t(), 4),
        "scales": pad(rounded.scales, (0, 0, 0, extra)).t(),
    }


def _pack_gemv_fast(rounded: _Rounded, group_size: int) -> dict[str, Tensor]:
    """Every code by the number of its word and field; zero points as negative offsets."""
    extra = _stored_groups(rounded, group_size) - len(rounded.scales)
    in_features, out_features = rounded.codes.shape
    inputs, outputs = np.arange(in_features)[:, None], np.arange(out_features)[None]
    place = inputs % 64 // 32 * 32 + inputs % 8 * 4 + inputs % 32 // 8
    nibble = outputs % 4 * 64 + place
    words = np.zeros((out_features // 4, in_features), dtype=np.int64)
    where = (outputs // 4, inputs // 64 * 64 + nibble // 4)
    np.add.at(words, where, rounded.codes.numpy().astype(np.int64) << (nibble % 4 * 4))
    offsets = -(rounded.zeros * rounded.scales.float()).half()
    return {
        "qweight": torch.from_numpy(words.astype(np.uint16).view(np.int16)),
        "qzeros": pad(offsets, (0, 0, 0, extra)),
        "scales": pad(rounded.scales, (0, 0, 0, extra)),
    }


def _stored_groups(rounded: _Rounded, group_size: int) -> int:
    """Count the groups that AutoAWQ's GEMV versions make room for."""
    step = {32: 32, 64: 16}.get(group_size, 8)
    return math.ceil(len(rounded.scales) / step) * step


_AWQ_PACKERS: dict[AwqVersion, Callable[[_Rounded, int], dict[str, Tensor]]] = {
    "gemm": _pack_gemm,
    "gemv": _pack_gemv,
    "gemv_fast": _pack_gemv_fast,
}


def _bit_rows(codes: Tensor, bits: int) -> Tensor:
    """Lay each row's codes out as one stream of bits, lowest first, in int32 words."""
    spread = codes.numpy()[:, :, None] >> np.arange(bits) & 1
    stream = np.packbits(spread.reshape(len(codes), -1).astype(np.uint8), 1, bitorder="little")
    return torch.from_numpy(stream.view("<i4").astype(np.int32))


class _Orders:
    """Gives each layer the group of every input; layers that share an input share the order."""

    _SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

    def __init__(self, seed: int, siblings_share_order: bool) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._siblings_share_order = siblings_share_order
        self._permutations: dict[str, Tensor] = {}

    def g_idx(self, name: str, in_features: int, group_size: int, desc_act: bool) -> Tensor:
        size = in_features if group_size == -1 else group_size
        groups = torch.arange(in_features) // size
        if not desc_act:
            return groups
        key = self._key(name)
        if key not in self._permutations:
            self._permutations[key] = torch.randperm(in_features, generator=self._generator)
        g_idx = torch.empty_like(groups)
        g_idx[self._permutations[key]] = groups
        return g_idx

    def _key(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        for siblings in self._SIBLINGS:
            if last in siblings and self._siblings_share_order:
                return f"{parent}.{siblings[0]}"
        return name


def _linears(
    model: PreTrainedModel, lm_head: bool, within_blocks: Sequence[Sequence[str]] | None
) -> Iterator[tuple[str, nn.Linear]]:
    allowed = {name for names in within_blocks for name in names} if within_blocks else None
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name == "lm_head":
            if lm_head:
                yield name, module
        elif allowed is None or re.sub(r"^model\.layers\.\d+\.", "", name) in allowed:
            yield name, module


def _apply_rules(
    dynamic: Mapping[str, Mapping[str, Any]], name: str, parameters: dict[str, Any]
) -> dict[str, Any] | None:
    """Apply the first rule that matches, as GPTQModel does; None leaves the module alone."""
    for rule, overrides in dynamic.items():
        if re.match(rule.removeprefix("-:").removeprefix("+:"), name):
            return None if rule.startswith("-:") else {**parameters, **overrides}
    return parameters


def _state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def _write_files(
    folder: Path,
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    settings_in: Sequence[SettingsFile],
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerFast | None,
    max_shard_bytes: int | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_diff_dict()
    config["architectures"] = [type(model).__name__]
    config.pop("dtype", None)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    if settings and "config.json" in settings_in:
        config["quantization_config"] = dict(settings)
    _write_json(folder / "config.json", config)
    if settings and "quantize_config.json" in settings_in:
        own = {key: value for key, value in settings.items() if key != "quant_method"}
        _write_json(folder / "quantize_config.json", own)
    model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    _write_shards(folder, tensors, max_shard_bytes)


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int | None) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if max_shard_bytes and shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    if max_shard_bytes is None:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return

    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
