"""The demo's weights in forms in which files are read wrongly, and what each check says of them.

Each form is made of right tensors, settings or weights; the checks then see it as if it had been
read so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaForCausalLM
from transformers.initialization import no_init_weights

from loaders.load import load
from loaders.model.opened import open_checkpoint
from loaders.model.packed_linear import packed_layers
from loaders.model.plausibility.parts import check_parts, describe_parts
from loaders.model.plausibility.prediction import check_prediction
from loaders.model.plausibility.rope import check_rope
from loaders.model.plausibility.sampling import open_tensors, sample_layers
from loaders.model.plausibility.statistics import describe_layer
from loaders.model.plausibility.weights import check_weights
from loaders.quantization.packed_tensors import PackedTensors
from loaders.quantization.packing import pack_gptq_codes, unpack_gptq_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    Tensors = dict[str, Tensor]
    Change = Callable[[str, Mapping[str, Tensors]], Tensors]

GPTQ = "tetrad/SmolLM2-135M-Instruct-GPTQ:gptq-4bit-64g-actorder_True"
PLAIN_GPTQ = "tetrad/SmolLM2-135M-Instruct-GPTQ:main"
WIDE = "tetrad/SmolLM2-135M-Instruct-GPTQ:gptq-8bit--1g-actorder_True"
AWQ = "tetrad/SmolLM2-135M-Instruct-AWQ:main"
ONE_LAYER = "model.layers.14.mlp.up_proj"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass(frozen=True)
class WrongForm:
    """One way to read the demo wrongly."""

    name: str
    spec: str
    # Gives one layer's tensors, by its name, from those of all layers.
    change: Change | None = None
    alter: Callable[[Any], None] | None = None  # changes the dequantised model


class DemoBranch:
    """One of the demo's branches: its tensors, and a stock model of its dequantised weights."""

    def __init__(self, spec: str, cache_dir: Path) -> None:
        loaded = load(spec, cache_dir=cache_dir, local_files_only=True, backend="reference")
        self._opened = open_checkpoint(loaded.provenance.folder, None, None)
        self._packed_model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._layers = {
            name: layer
            for name, layer in packed_layers(loaded.model).items()
            if layer.format is not None  # the head, which is tied
        }
        with open_tensors(self._opened.tensors) as read:
            self._right = {name: self._read(read, name) for name in self._layers}
        self._right_model = self._dequantised()
        self._right_checks = self._check_tensors(self._right)

    def checks_that_catch(self, form: WrongForm) -> list[str]:
        """Return the names of the checks to which the form is suspect."""
        model = copy.deepcopy(self._right_model)
        checks = set(self._right_checks)
        if form.change is not None:
            changed = {name: form.change(name, self._right) for name in self._layers}
            for name, tensors in changed.items():
                if tensors is not self._right[name]:
                    model.get_submodule(name).weight.data = self._weight(name, tensors)
            checks = self._check_tensors(changed)
        if form.alter is not None:
            form.alter(model)
        with torch.inference_mode():
            found = check_rope(model.config) + check_prediction(model, self._tokenizer)
        return sorted(checks | {suspicion.check for suspicion in found})

    @staticmethod
    def _read(read: Callable[[str], Tensor | None], layer: str) -> Tensors:
        keys = ("qweight", "qzeros", "scales", "g_idx")
        found = {key: read(f"{layer}.{key}") for key in keys}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def _check_tensors(self, tensors: Mapping[str, Tensors]) -> set[str]:
        def read(name: str) -> Tensor | None:
            layer, _, key = name.rpartition(".")
            return tensors.get(layer, {}).get(key)

        samples = sample_layers(self._opened, self._packed_model, read)
        found = check_weights([describe_layer(sample) for sample in samples])
        found += check_parts([describe_parts(sample) for sample in samples])
        return {suspicion.check for suspicion in found}

    def _weight(self, name: str, tensors: Tensors) -> Tensor:
        layer = self._layers[name]
        assert layer.format is not None
        packed = PackedTensors(name, layer.format, layer.in_features, layer.out_features, tensors)
        return packed.dequantize().contiguous()

    def _dequantised(self) -> Any:
        with no_init_weights():  # every weight is filled in below
            model = LlamaForCausalLM(copy.deepcopy(self._packed_model.config)).eval()
        others = {
            name: parameter
            for name, parameter in self._packed_model.named_parameters()
            if name.endswith("norm.weight")
        }
        others["model.embed_tokens.weight"] = self._packed_model.get_input_embeddings().weight
        model.load_state_dict(others, strict=False)
        model.tie_weights()
        for name, tensors in self._right.items():
            model.get_submodule(name).weight.data = self._weight(name, tensors)
        return model.requires_grad_(False)


def _tensor(key: str, change: Callable[[Tensor], Tensor]) -> Change:
    def changed(layer: str, right: Mapping[str, Tensors]) -> Tensors:
        return {**right[layer], key: change(right[layer][key])}

    return changed


def _codes(change: Callable[[Tensor], Tensor]) -> Change:
    """Change the codes [in, out] of GPTQ's packing."""
    return _tensor(
        "qweight",
        lambda words: pack_gptq_codes(change(unpack_gptq_codes(words, 4)).contiguous(), 4),
    )


def _of_next_block(key: str) -> Change:
    """Take one tensor from the same layer of the next block."""

    def changed(layer: str, right: Mapping[str, Tensors]) -> Tensors:
        number = int(layer.split(".")[2])
        other = layer.replace(f".{number}.", f".{(number + 1) % 30}.")
        return {**right[layer], key: right[other][key]}

    return changed


def _in_one_layer(change: Change) -> Change:
    def changed(layer: str, right: Mapping[str, Tensors]) -> Tensors:
        return change(layer, right) if layer == ONE_LAYER else right[layer]

    return changed


def _shift_zeros(by: int, bits: int = 4) -> Change:
    def shifted(qzeros: Tensor) -> Tensor:
        zeros = unpack_gptq_codes(qzeros.t(), bits)
        return pack_gptq_codes((zeros + by) & (2**bits - 1), bits).t().contiguous()

    return _tensor("qzeros", shifted)


def _columns_as_packed(words: Tensor) -> Tensor:
    """Leave AWQ's columns in the order of the words: what undoing that order then mixes up."""
    fields = torch.stack([(words >> 4 * column) & 15 for column in range(8)], dim=-1)
    mixed = fields[..., AWQ_ORDER]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (mixed << shifts).sum(dim=-1, dtype=torch.int32)


def _both_unordered(layer: str, right: Mapping[str, Tensors]) -> Tensors:
    unordered = {key: _columns_as_packed(right[layer][key]) for key in ("qweight", "qzeros")}
    return {**right[layer], **unordered}


def _reverse_runs(codes: Tensor) -> Tensor:
    return codes.reshape(-1, 8, codes.shape[1]).flip(1).reshape(codes.shape)


def _swap_halves(codes: Tensor) -> Tensor:
    return (codes & 3) << 2 | codes >> 2


def _second_half_zero(key: str) -> Change:
    def halved(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[len(changed) // 2 :] = 0
        return changed

    return _tensor(key, halved)


def _one_row(scales: Tensor, factor: float) -> Tensor:
    changed = scales.clone()
    changed[1] *= factor
    return changed


def _turned(scales: Tensor) -> Tensor:
    return scales.t().contiguous().view(scales.shape)


def _linears(model: Any) -> Iterator[Any]:
    return (
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )


def _norms(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "variance_epsilon"))


def _set_rope(model: Any, *, theta: float | None = None, factor: float = 1.0) -> None:
    rotary = model.model.rotary_emb
    if theta is not None:
        half = len(rotary.inv_freq)
        rotary.inv_freq = theta ** (-torch.arange(half) / half)
    rotary.inv_freq = rotary.inv_freq / factor


def _ignore_rope_factor(model: Any) -> None:
    model.config.rope_parameters["factor"] = 4.0


def _pair_rotary_rows(model: Any) -> None:
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            weight = module.weight
            heads = weight.view(-1, 2, model.config.head_dim // 2, weight.shape[1])
            module.weight.data = heads.transpose(1, 2).reshape(weight.shape).contiguous()


def _shift_ids(model: Any) -> None:
    table = model.get_input_embeddings().weight  # the head's, too
    table.data = table.data.roll(1, 0)
    assert torch.equal(model.lm_head.weight, table)


def _scale_linears(factor: float) -> Callable[[Any], None]:
    def scale(model: Any) -> None:
        for linear in _linears(model):
            linear.weight.mul_(factor)

    return scale


def _untie_head(model: Any) -> None:
    head = torch.empty_like(model.lm_head.weight).normal_(
        0, 0.02, generator=torch.Generator().manual_seed(0)
    )
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)


def _add_to_norms(model: Any) -> None:
    for norm in _norms(model):
        norm.weight.add_(1)


def _set_epsilon(model: Any) -> None:
    for norm in _norms(model):
        norm.variance_epsilon = 0.1


FORMS = (
    WrongForm("read rightly: 4-bit group 32", PLAIN_GPTQ),
    WrongForm("read rightly: 4-bit group 64, act order", GPTQ),
    WrongForm("read rightly: 8-bit, one group", WIDE),
    WrongForm("read rightly: AWQ", AWQ),
    WrongForm("zero points one too large", GPTQ, _shift_zeros(1)),
    WrongForm("zero points one too small", GPTQ, _shift_zeros(-1)),
    WrongForm("zero points one too large, in one layer", GPTQ, _in_one_layer(_shift_zeros(1))),
    WrongForm("zero points one too large, in 8 bits", WIDE, _shift_zeros(1, bits=8)),
    WrongForm(
        "act order's groups taken to be in order",
        GPTQ,
        _tensor("g_idx", lambda g_idx: g_idx.sort().values),
    ),
    WrongForm("all inputs in one group", GPTQ, _tensor("g_idx", torch.ones_like)),
    WrongForm("rows of scales shifted by one", GPTQ, _tensor("scales", lambda s: s.roll(1, 0))),
    WrongForm(
        "rows of zero points shifted by one", GPTQ, _tensor("qzeros", lambda z: z.roll(1, 0))
    ),
    WrongForm("scales stored turned around", GPTQ, _tensor("scales", _turned)),
    WrongForm("scales of the next block", GPTQ, _of_next_block("scales")),
    WrongForm(
        "scales of the next block, in one layer", GPTQ, _in_one_layer(_of_next_block("scales"))
    ),
    WrongForm("codes of the next block", GPTQ, _of_next_block("qweight")),
    WrongForm("AWQ's order of columns not undone", AWQ, _both_unordered),
    WrongForm(
        "AWQ's order not undone in the zero points", AWQ, _tensor("qzeros", _columns_as_packed)
    ),
    WrongForm("codes of a word in reverse", GPTQ, _codes(_reverse_runs)),
    WrongForm("codes of a word in reverse, without act order", PLAIN_GPTQ, _codes(_reverse_runs)),
    WrongForm("halves of each code swapped", GPTQ, _codes(_swap_halves)),
    WrongForm("codes counted from the top", GPTQ, _codes(lambda codes: 15 - codes)),
    WrongForm("scales negative", GPTQ, _tensor("scales", torch.neg)),
    WrongForm("zero points four too large", GPTQ, _shift_zeros(4)),
    WrongForm("second half of the codes zero", GPTQ, _second_half_zero("qweight")),
    WrongForm(
        "second half of the codes zero, in one layer",
        GPTQ,
        _in_one_layer(_second_half_zero("qweight")),
    ),
    WrongForm(
        "second half of the codes zero, in one layer of one group",
        WIDE,
        _in_one_layer(_second_half_zero("qweight")),
    ),
    WrongForm(
        "half of the rows of scales zero, in one layer",
        GPTQ,
        _in_one_layer(_second_half_zero("scales")),
    ),
    WrongForm(
        "a group's scales 50 times as large, in one layer",
        GPTQ,
        _in_one_layer(_tensor("scales", lambda s: _one_row(s, 50.0))),
    ),
    WrongForm(
        "a group's scales 50 times too small, in one layer",
        GPTQ,
        _in_one_layer(_tensor("scales", lambda s: _one_row(s, 0.02))),
    ),
    WrongForm(
        "scales four times as large, in one layer",
        GPTQ,
        _in_one_layer(_tensor("scales", lambda s: s * 4)),
    ),
    WrongForm(
        "scales twice as large, in one layer",
        GPTQ,
        _in_one_layer(_tensor("scales", lambda s: s * 2)),
    ),
    WrongForm("scales twice as large", GPTQ, alter=_scale_linears(2.0)),
    WrongForm("scales half as large", GPTQ, alter=_scale_linears(0.5)),
    WrongForm(
        "scales of 8-bit floats left out",
        GPTQ,
        _tensor("scales", lambda s: torch.ones_like(s) * 16),
    ),
    WrongForm("rotary rows in pairs instead of halves", GPTQ, alter=_pair_rotary_rows),
    WrongForm("rotary base 10 times too small", GPTQ, alter=lambda m: _set_rope(m, theta=10_000.0)),
    WrongForm("positions stretched 8 times", GPTQ, alter=lambda m: _set_rope(m, factor=8.0)),
    WrongForm("a rotary factor of the type `default`, ignored", GPTQ, alter=_ignore_rope_factor),
    WrongForm("one added to the norms' weights", GPTQ, alter=_add_to_norms),
    WrongForm("the norms' epsilon 0.1", GPTQ, alter=_set_epsilon),
    WrongForm("an output head that is not the file's", GPTQ, alter=_untie_head),
    WrongForm("token ids off by one", GPTQ, alter=_shift_ids),
)
