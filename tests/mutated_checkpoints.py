"""Checkpoints with one thing changed at random, each by a seed, and what loading them may give.

A mutation is harmless, contradicts what is stored, or gives the files another meaning that only
they can tell. What each means is known here without asking the product: from the checkpoint before
the change, or from `tests.dequantize`, which reads the mutated files by their own settings.

    python -m tests.mutated_checkpoints [FIRST] [COUNT]

tries a range of seeds and prints what was served wrongly, and how often harmless ones loaded.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from structlog.testing import capture_logs
from transformers.utils import logging as transformers_logging

from loaders.errors import LoadError
from loaders.load import load
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

SEEDS = range(500)  # all of them
SHARE_OF_HARMLESS = 5  # one seed in five
PROMPT = torch.tensor([[5, 17, 99, 300, 411, 42, 7, 250, 128, 64, 33, 500]])
# Of the logits' spread: both compute in float32, in another order.
LARGEST_ERROR = 1e-3
_SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


class Meaning(Enum):
    """What a mutated checkpoint means, and so what may be made of it besides refusing it."""

    UNCHANGED = "as before, and nothing to be said"
    CONTRADICTION = "as before, if it is said that settings and tensors disagree"
    OWN = "what its own settings give"
    NONE = "nothing: it must be refused or suspected"


class Outcome(Enum):
    """What loading it gave."""

    RIGHT = "right"
    REFUSED = "refused"
    SUSPECT = "suspect"
    SILENT = "read right, but a contradiction went without a word"
    WRONG = "wrong"
    CRASHED = "an error that says nothing"


ALLOWED = (Outcome.RIGHT, Outcome.REFUSED, Outcome.SUSPECT)


@dataclass
class Case:
    """A checkpoint in memory: to be changed, then written."""

    base: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    own: dict[str, Any] | None  # quantize_config.json
    random: random.Random

    @property
    def settings(self) -> dict[str, Any]:
        """The quantisation's parameters in config.json."""
        found: dict[str, Any] = self.config["quantization_config"]
        return found

    def set(self, key: str, value: object) -> None:
        """Change a parameter wherever it stands."""
        self.settings[key] = value
        if self.own is not None:
            self.own[key] = value

    def modules(self, ending: str = "") -> list[str]:
        """Name the packed layers, by their order."""
        marker = ".weight_packed" if self.base.startswith("ct") else ".qweight"
        names = (name.removesuffix(marker) for name in self.tensors if name.endswith(marker))
        return sorted(name for name in names if name.endswith(ending))

    def module(self) -> str:
        """Choose a packed layer."""
        return self.random.choice(self.modules())

    def some(self, key: str) -> list[str]:
        """Name one layer's tensor or all layers' tensors of a kind."""
        if self.random.random() < 0.5:
            return [f"{self.module()}.{key}"]
        return [f"{module}.{key}" for module in self.modules()]

    def write(self, folder: Path) -> Path:
        """Write it as a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in _tokenizer_folder().iterdir():
            shutil.copy(path, folder)
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.own is not None:
            (folder / "quantize_config.json").write_text(json.dumps(self.own))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


@dataclass(frozen=True)
class Mutation:
    """One kind of change."""

    name: str
    apply: Callable[[Case], Meaning | None]  # None where this case has nothing to change
    bases: str  # prefix of those it is for
    is_harmless: bool


MUTATIONS: list[Mutation] = []


def _mutation(
    bases: str = "", *, is_harmless: bool = False
) -> Callable[[Callable[[Case], Meaning | None]], Callable[[Case], Meaning | None]]:
    def add(apply: Callable[[Case], Meaning | None]) -> Callable[[Case], Meaning | None]:
        MUTATIONS.append(Mutation(apply.__name__, apply, bases, is_harmless))
        return apply

    return add


_harmless = partial(_mutation, is_harmless=True)

# Harmless: these load, and are not suspect.


@_harmless()
def another_order_of_the_tensors_in_the_file(case: Case) -> Meaning:
    names = list(case.tensors)
    case.random.shuffle(names)
    case.tensors = {name: case.tensors[name] for name in names}
    return Meaning.UNCHANGED


@_harmless("gptq")
def own_settings_file_removed(case: Case) -> Meaning:
    case.own = None
    return Meaning.UNCHANGED


@_harmless("gptq")
def settings_in_their_own_file_only(case: Case) -> Meaning:
    del case.config["quantization_config"]
    return Meaning.UNCHANGED


@_harmless()
def a_note_in_the_settings(case: Case) -> Meaning:
    case.set(case.random.choice(["damp_percent", "meta", "dataset", "true_sequential"]), 0.05)
    return Meaning.UNCHANGED


@_harmless("gptq")
def symmetry_left_unsaid(case: Case) -> Meaning:
    case.set("sym", False)
    return Meaning.UNCHANGED


@_harmless("gptq")
def numbers_as_text(case: Case) -> Meaning:
    key = case.random.choice(["bits", "group_size"])
    case.set(key, case.random.choice([str, float])(case.settings[key]))
    return Meaning.UNCHANGED


@_harmless("gptq-4-act")
def act_order_left_unsaid_where_there_is_one(case: Case) -> Meaning:
    for settings in (case.settings, case.own or {}):
        settings.pop("desc_act", None)
    return Meaning.UNCHANGED


@_harmless()
def scales_in_float32(case: Case) -> Meaning:
    key = "weight_scale" if case.base.startswith("ct") else "scales"
    for name in case.some(key):
        case.tensors[name] = case.tensors[name].float()
    return Meaning.UNCHANGED


@_harmless()
def norms_in_float32(case: Case) -> Meaning:
    for name in case.tensors:
        if "norm" in name:
            case.tensors[name] = case.tensors[name].float()
    return Meaning.UNCHANGED


@_harmless()
def a_table_that_nobody_needs(case: Case) -> Meaning:
    table = 10_000.0 ** (-torch.arange(0, 32, 2) / 32)
    case.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = table
    return Meaning.UNCHANGED


@_harmless("gptq")
def zero_biases(case: Case) -> Meaning:
    for module in case.modules():
        outputs = case.tensors[f"{module}.scales"].shape[1]
        case.tensors[f"{module}.bias"] = torch.zeros(outputs, dtype=torch.float16)
    return Meaning.UNCHANGED


@_harmless("gptq-4-sym")
def groups_in_order_left_unsaid(case: Case) -> Meaning:
    for module in case.modules():
        del case.tensors[f"{module}.g_idx"]
    return Meaning.UNCHANGED


@_harmless("gptq-4-sym")
def groups_in_order_stored_as_zeros(case: Case) -> Meaning:
    for module in case.modules():
        case.tensors[f"{module}.g_idx"].zero_()
    return Meaning.UNCHANGED


@_harmless("gptq")
def a_rule_for_no_layer(case: Case) -> Meaning:
    rule = case.random.choice(["-:lm_head", "+:model.layers.9.*", "-:.*experts.*"])
    case.set("dynamic", {rule: {} if rule[0] == "-" else {"bits": 8}})
    return Meaning.UNCHANGED


@_harmless("gptq")
def a_rule_that_says_what_is_so(case: Case) -> Meaning:
    case.set("dynamic", {f"+:{case.module()}$": {"bits": case.settings["bits"]}})
    return Meaning.UNCHANGED


@_harmless()
def a_pad_id_beyond_the_vocabulary(case: Case) -> Meaning:
    case.config["pad_token_id"] = case.random.choice([512, 513, -1, 32_000])
    return Meaning.UNCHANGED


@_harmless("awq-gemm")
def gemm_under_another_name(case: Case) -> Meaning:
    case.set("version", case.random.choice(["GEMM", "exllama", "ipex"]))
    return Meaning.UNCHANGED


# Settings that contradict the tensors.


@_mutation("gptq")
def other_bits(case: Case) -> Meaning:
    case.set("bits", case.random.choice([b for b in (2, 3, 4, 8) if b != case.settings["bits"]]))
    return Meaning.CONTRADICTION


@_mutation()
def other_group_size(case: Case) -> Meaning | None:
    if case.base.startswith("ct"):
        settings = case.settings["config_groups"]["group_0"]["weights"]
        settings["group_size"] = case.random.choice([16, 64, 128])
        return Meaning.CONTRADICTION
    now = case.settings["group_size"]
    case.set("group_size", case.random.choice([s for s in (16, 32, 64, 128, -1) if s != now]))
    is_same = {now, case.settings["group_size"]} == {128, -1}
    if is_same and case.base.startswith("awq"):
        return None  # only the layers with more inputs than 128 contradict it
    return Meaning.CONTRADICTION


@_mutation("ct")
def other_bits_of_compressed_tensors(case: Case) -> Meaning:
    case.settings["config_groups"]["group_0"]["weights"]["num_bits"] = case.random.choice([2, 3, 8])
    return Meaning.CONTRADICTION


@_mutation("ct")
def symmetry_of_compressed_tensors(case: Case) -> Meaning:
    weights = case.settings["config_groups"]["group_0"]["weights"]
    weights["symmetric"] = not weights["symmetric"]
    return Meaning.CONTRADICTION


@_mutation("gptq")
def called_symmetric_and_not(case: Case) -> Meaning | None:
    if case.settings["sym"]:
        return None
    case.set("sym", True)
    return Meaning.CONTRADICTION


@_mutation("gptq")
def called_the_other_version(case: Case) -> Meaning:
    is_v2 = case.settings.get("checkpoint_format") == "gptq_v2"
    case.set("checkpoint_format", "gptq" if is_v2 else "gptq_v2")
    # Only symmetric tensors tell that they were meant otherwise.
    return Meaning.CONTRADICTION if case.settings["sym"] else Meaning.OWN


@_mutation("gptq")
def called_awq(case: Case) -> Meaning:
    case.set("quant_method", "awq")
    return Meaning.CONTRADICTION


@_mutation("awq")
def called_gptq(case: Case) -> Meaning:
    case.set("quant_method", "gptq")
    case.set("desc_act", False)
    return Meaning.CONTRADICTION


@_mutation("awq")
def called_another_awq_version(case: Case) -> Meaning:
    now = case.settings["version"]
    others = [v for v in ("gemm", "gemv", "gemv_fast", "marlin") if v != now]
    case.set("version", case.random.choice(others))
    return Meaning.CONTRADICTION


@_mutation("awq")
def called_without_zero_points(case: Case) -> Meaning:
    case.set("zero_point", False)
    return Meaning.CONTRADICTION


@_mutation("gptq-4-act")
def act_order_denied(case: Case) -> Meaning:
    case.set("desc_act", False)
    return Meaning.CONTRADICTION


@_mutation("gptq")
def act_order_claimed_without_its_tensor(case: Case) -> Meaning | None:
    if case.settings["group_size"] == -1:
        return None
    case.set("desc_act", True)
    for module in case.modules():
        case.tensors.pop(f"{module}.g_idx", None)
    return Meaning.NONE


@_mutation("gptq")
def two_files_that_disagree(case: Case) -> Meaning:
    key = case.random.choice(["bits", "group_size", "desc_act", "sym"])
    other = {"bits": 5, "group_size": 256}.get(key, not case.settings[key])
    assert case.own is not None
    case.own[key] = other
    return Meaning.CONTRADICTION


@_mutation("gptq")
def a_rule_that_contradicts(case: Case) -> Meaning:
    module = case.module()
    wrong = {"bits": 8 if case.settings["bits"] != 8 else 4}
    case.set("dynamic", {f"+:{module}$": wrong})
    if case.random.random() < 0.5:
        case.set("dynamic", {f"-:{module}$": {}})
    return Meaning.CONTRADICTION


@_mutation("gptq")
def a_parameter_missing(case: Case) -> Meaning:
    key = case.random.choice(["bits", "group_size", "quant_method"])
    for settings in (case.settings, case.own or {}):
        settings.pop(key, None)
    return Meaning.UNCHANGED


@_mutation()
def nonsense_in_the_settings(case: Case) -> Meaning:
    key = case.random.choice(["bits", "group_size", "quant_method"])
    value = case.random.choice(["many", [], {}, -7, 1e9, True, "4.5"])
    if case.base.startswith("ct") and key != "quant_method":
        key = {"bits": "num_bits"}.get(key, key)
        case.settings["config_groups"]["group_0"]["weights"][key] = value
    else:
        case.set(key, value)
    return Meaning.CONTRADICTION


# Tensors of another dtype, name, shape or number.


@_mutation()
def another_dtype(case: Case) -> Meaning | None:
    name = case.random.choice(sorted(case.tensors))
    tensor = case.tensors[name]
    choices = [torch.int64, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.float64]
    dtype = case.random.choice(choices)
    if tensor.is_floating_point() and dtype == torch.float64:
        return None
    case.tensors[name] = tensor.to(dtype)
    is_exact = not tensor.is_floating_point() and dtype == torch.int64
    return Meaning.UNCHANGED if is_exact else Meaning.NONE


@_mutation()
def a_tensor_missing(case: Case) -> Meaning:
    candidates = [n for n in sorted(case.tensors) if not n.endswith((".g_idx", "weight_shape"))]
    del case.tensors[case.random.choice(candidates)]
    return Meaning.NONE


@_mutation()
def a_tensor_under_another_name(case: Case) -> Meaning | None:
    is_ordered = case.base == "gptq-4-act"  # else it says nothing
    name = case.random.choice([n for n in sorted(case.tensors) if is_ordered or "g_idx" not in n])
    module, _, last = name.rpartition(".")
    new = case.random.choice([f"{module}.{last}s", f"{module}_x.{last}", f"x.{name}"])
    case.tensors[new] = case.tensors.pop(name)
    return Meaning.NONE


@_mutation()
def a_tensor_too_many(case: Case) -> Meaning:
    module = case.module()
    name = case.random.choice(
        [
            f"{module}.weight_scale_inv",
            f"{module}.weight",
            f"{module}.lora_A.weight",
            f"{module}.smooth",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.1.post_feedforward_layernorm.weight",
            "model.norm.bias",
            "adapter",
        ]
    )
    case.tensors[name] = torch.rand(32)
    return Meaning.NONE


@_mutation()
def a_bias_too_many(case: Case) -> Meaning | None:
    where = case.random.choice(["lm_head", "model.norm", "model.layers.0.input_layernorm"])
    outputs = len(case.tensors[f"{where}.weight"])
    case.tensors[f"{where}.bias"] = torch.rand(outputs).half()
    return Meaning.NONE


@_mutation()
def a_layer_beyond_the_last(case: Case) -> Meaning:
    for name in [n for n in case.tensors if ".layers.1." in n]:
        case.tensors[name.replace(".layers.1.", ".layers.2.")] = case.tensors[name].clone()
    return Meaning.NONE


@_mutation()
def another_shape(case: Case) -> Meaning:
    candidates = [n for n in sorted(case.tensors) if case.tensors[n].dim() == 2]
    name = case.random.choice(candidates)
    tensor = case.tensors[name]
    if case.random.random() < 0.3 and tensor.shape[0] != tensor.shape[1]:
        case.tensors[name] = tensor.t().contiguous()
    elif case.random.random() < 0.5:
        case.tensors[name] = tensor[:-1].clone()
    else:
        case.tensors[name] = torch.cat([tensor, tensor[:, :8]], dim=1)
    return Meaning.NONE


# Other values.


@_mutation("gptq")
def zero_points_of_the_other_version(case: Case) -> Meaning:
    bits = case.settings["bits"]
    unit = sum(1 << (bits * place) for place in range(32 // bits))
    is_v2 = case.settings.get("checkpoint_format") == "gptq_v2"
    if bits == 3:
        return _random_zero_points(case)
    # Fields are neither 0 nor full where all are the middle: no borrow from the next.
    for module in case.modules():
        words = case.tensors[f"{module}.qzeros"].long() & 0xFFFFFFFF
        words = words - unit if is_v2 else words + unit
        case.tensors[f"{module}.qzeros"] = _as_int32(words)
    return Meaning.CONTRADICTION if case.settings["sym"] else Meaning.OWN


def _as_int32(words: Tensor) -> Tensor:
    words = words & 0xFFFFFFFF
    return torch.where(words >= 2**31, words - 2**32, words).int()


@_mutation("gptq")
def zero_points_at_random(case: Case) -> Meaning:
    return _random_zero_points(case)


def _random_zero_points(case: Case) -> Meaning:
    generator = torch.Generator().manual_seed(case.random.randrange(2**31))
    for name in case.some("qzeros"):
        shape = case.tensors[name].shape
        case.tensors[name] = torch.randint(-(2**31), 2**31, shape, generator=generator).int()
    return Meaning.NONE if case.settings["sym"] else Meaning.OWN


@_mutation("gptq-4-sym")
def one_zero_point_off(case: Case) -> Meaning:
    words = case.tensors[f"{case.module()}.qzeros"]
    words.view(-1)[case.random.randrange(words.numel())] ^= 1 << case.random.randrange(31)
    return Meaning.NONE


@_mutation("gptq")
def groups_exchanged(case: Case) -> Meaning | None:
    if case.settings["group_size"] == -1 or not case.settings["desc_act"]:
        return None
    groups = case.tensors[f"{case.module()}.g_idx"]
    one, other = case.random.sample(range(len(groups)), 2)
    groups[[one, other]] = groups[[other, one]]
    return Meaning.OWN


@_mutation("gptq")
def a_group_of_another_size(case: Case) -> Meaning | None:
    if case.settings["group_size"] == -1:
        return None
    groups = case.tensors[f"{case.module()}.g_idx"]
    place = case.random.randrange(len(groups))
    groups[place] = (groups[place] + 1) % (int(groups.max()) + 1)
    return Meaning.NONE


@_mutation("gptq")
def a_group_that_does_not_exist(case: Case) -> Meaning | None:
    groups = case.tensors[f"{case.module()}.g_idx"]
    groups[case.random.randrange(len(groups))] = case.random.choice(
        [-1, 10_000, int(groups.max()) + 1]
    )
    return Meaning.NONE


@_mutation("gptq")
def groups_all_alike(case: Case) -> Meaning | None:
    if case.settings["group_size"] == -1:
        return None
    for module in case.modules():
        case.tensors[f"{module}.g_idx"].fill_(1)
    return Meaning.NONE


@_mutation()
def scales_that_are_no_numbers(case: Case) -> Meaning:
    key = "weight_scale" if case.base.startswith("ct") else "scales"
    scales = case.tensors[f"{case.module()}.{key}"]
    value = case.random.choice([float("nan"), float("inf"), -float("inf")])
    scales.view(-1)[case.random.randrange(_num_read(case, scales))] = value
    return Meaning.NONE


def _num_read(case: Case, scales: Tensor) -> int:
    """How many of the first scales belong to inputs; GEMV's surplus ones belong to none."""
    return 1 if "gemv" in case.base else scales.numel()


@_mutation()
def scales_all_zero(case: Case) -> Meaning:
    key = "weight_scale" if case.base.startswith("ct") else "scales"
    case.tensors[f"{case.module()}.{key}"].zero_()
    return Meaning.NONE


@_mutation("gptq")
def scales_of_other_values(case: Case) -> Meaning:
    for name in case.some("scales"):
        case.tensors[name] = case.tensors[name] * case.random.choice([0.5, 2, -1])
    return Meaning.OWN


@_mutation("gptq")
def scales_in_another_order(case: Case) -> Meaning:
    for name in case.some("scales"):
        case.tensors[name] = case.tensors[name].flip(0)
    return Meaning.OWN


@_mutation("gptq")
def codes_all_alike(case: Case) -> Meaning:
    for module in case.modules():
        case.tensors[f"{module}.qweight"].fill_(0x77777777)
    return Meaning.NONE


@_mutation("gptq")
def codes_with_a_flipped_bit(case: Case) -> Meaning:
    words = case.tensors[f"{case.module()}.qweight"].view(-1)
    words[case.random.randrange(len(words))] ^= 1 << case.random.randrange(31)
    return Meaning.OWN


# Another model's settings.


@_mutation()
def another_size_of_the_model(case: Case) -> Meaning:
    key = case.random.choice(
        ["hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"]
    )
    case.config[key] = case.random.choice([case.config[key] * 2, case.config[key] + 1, 10**7])
    return Meaning.NONE


@_mutation()
def other_heads(case: Case) -> Meaning:
    case.config["num_key_value_heads"] = case.random.choice([1, 4])
    return Meaning.NONE


@_mutation()
def another_rotary_base(case: Case) -> Meaning:
    for settings in (case.config, case.config.get("rope_parameters") or {}):
        if "rope_theta" in settings:
            settings["rope_theta"] = 1_000_000.0
    case.config.setdefault("rope_theta", 1_000_000.0)
    return Meaning.OWN


@_mutation()
def a_head_that_is_called_tied(case: Case) -> Meaning:
    case.config["tie_word_embeddings"] = True
    return Meaning.CONTRADICTION


def mutate(seed: int) -> tuple[Case, Mutation, Meaning]:
    """Make the checkpoint of a seed; every fifth is harmless."""
    chooser = random.Random(seed)
    is_harmless = seed % SHARE_OF_HARMLESS == 0
    choices = [mutation for mutation in MUTATIONS if mutation.is_harmless == is_harmless]
    while True:
        mutation = chooser.choice(choices)
        base = chooser.choice([name for name in sorted(_BASES) if name.startswith(mutation.bases)])
        case = _read(base, chooser)
        meaning = mutation.apply(case)
        if meaning is not None:
            return case, mutation, meaning


def try_seed(seed: int, folder: Path) -> tuple[Outcome, str]:
    """Load a seed's checkpoint; return what came of it, and a line for people."""
    case, mutation, meaning = mutate(seed)
    told = f"seed {seed}: {case.base}, {mutation.name}"
    case.write(folder)
    with capture_logs() as logs:
        try:
            loaded = load(
                str(folder), device="cpu", backend="reference", self_test=True, cache_dir=folder
            )
        except LoadError as error:
            return Outcome.REFUSED, f"{told}: {type(error).__name__}: {error}"
        except Exception as error:
            return Outcome.CRASHED, f"{told}: {type(error).__name__}: {error}"
    words = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    outcome = _judge(loaded, case.base, meaning, folder, words)
    doubts = "; ".join(map(str, loaded.suspicions))
    return outcome, f"{told}: {outcome.value}, said {words or 'nothing'}{doubts and f', {doubts}'}"


def _judge(loaded: Any, base: str, meaning: Meaning, folder: Path, words: list[str]) -> Outcome:
    if loaded.suspicions:
        return Outcome.SUSPECT
    if meaning is Meaning.NONE:
        return Outcome.WRONG
    expected = _logits_of_base(base)
    if meaning is Meaning.OWN:
        expected = _logits(dequantized_model(folder))
    if not _agree(_logits(loaded.model), expected):
        return Outcome.WRONG
    return Outcome.SILENT if meaning is Meaning.CONTRADICTION and not words else Outcome.RIGHT


def _agree(found: Tensor, expected: Tensor) -> bool:
    if not torch.equal(found.argmax(-1), expected.argmax(-1)):
        return False
    return float((found - expected).abs().max() / expected.std()) < LARGEST_ERROR


def _logits(model: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(PROMPT).logits[0].float()
    return logits


@cache
def _folder() -> Path:
    _folder.keep = TemporaryDirectory(prefix="mutated-")  # type: ignore[attr-defined]
    return Path(_folder.keep.name)  # type: ignore[attr-defined]


@cache
def _tokenizer_folder() -> Path:
    folder = _folder() / "tokenizer"
    tiny_tokenizer().save_pretrained(folder)
    return folder


@cache
def _base_folder(base: str) -> Path:
    folder = _folder() / base
    model = tiny_llama(**_SHAPE)
    _BASES[base](folder, model)
    return folder


_BASES: Mapping[str, Callable[[Path, Any], Path]] = {
    "gptq-4-sym": partial(write_gptq_checkpoint, bits=4, group_size=32),
    "gptq-4-act": partial(write_gptq_checkpoint, bits=4, group_size=32, desc_act=True),
    "gptq-4-v2": partial(
        write_gptq_checkpoint, bits=4, group_size=64, checkpoint_format="gptq_v2"
    ),
    "gptq-4-asym": partial(write_gptq_checkpoint, bits=4, group_size=32, sym=False),
    "gptq-3-sym": partial(write_gptq_checkpoint, bits=3, group_size=32),
    "gptq-8-whole": partial(write_gptq_checkpoint, bits=8, group_size=-1, desc_act=True),
    "awq-gemm": partial(write_awq_checkpoint, group_size=32),
    "awq-gemv": partial(write_awq_checkpoint, group_size=64, version="gemv"),
    "awq-fast": partial(write_awq_checkpoint, group_size=64, version="gemv_fast"),
    "ct-sym": partial(write_compressed_checkpoint, group_size=32),
    "ct-asym": partial(write_compressed_checkpoint, group_size=32, sym=False),
}  # fmt: skip


@cache
def _logits_of_base(base: str) -> Tensor:
    return _logits(dequantized_model(_base_folder(base)))


@cache
def _stored(base: str) -> dict[str, Tensor]:
    with safe_open(_base_folder(base) / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read(base: str, chooser: random.Random) -> Case:
    folder = _base_folder(base)
    own = folder / "quantize_config.json"
    return Case(
        base=base,
        tensors={name: tensor.clone() for name, tensor in _stored(base).items()},
        config=json.loads((folder / "config.json").read_text()),
        own=json.loads(own.read_text()) if own.exists() else None,
        random=chooser,
    )


def main(first: int, count: int) -> int:
    """Try a range of seeds; return 1 where anything was served wrongly."""
    outcomes: Counter[tuple[bool, Outcome]] = Counter()
    for seed in range(first, first + count):
        with TemporaryDirectory() as folder:
            outcome, line = try_seed(seed, Path(folder))
        is_harmless = seed % SHARE_OF_HARMLESS == 0
        outcomes[is_harmless, outcome] += 1
        if outcome is not Outcome.RIGHT if is_harmless else outcome not in ALLOWED:
            print(("harmless: " if is_harmless else "") + line, flush=True)
    for (is_harmless, outcome), number in sorted(outcomes.items(), key=str):
        print("harmless" if is_harmless else "harmful", outcome.name, number)
    return int(any(outcome not in ALLOWED for _, outcome in outcomes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [SEEDS.start, len(SEEDS)][len(numbers) :])))
