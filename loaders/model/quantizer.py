"""Our quantizer, registered through Transformers' own extension points.

It replaces `nn.Linear` by `PackedLinear` wherever the checkpoint holds packed tensors; sharding,
placement and reading of files stay Transformers' work. Its `quant_method` is set on the config
that is handed to `from_pretrained`, so Transformers never looks for the libraries that GPTQ and
AWQ would need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from loaders.errors import TensorError
from loaders.model.packed_linear import PackedLinear, TensorSpec, packed_layers
from loaders.model.skeleton import check_skeleton
from loaders.quantization.layouts import layout_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from loaders.checkpoint.files import TensorInfo
    from loaders.quantization.layouts.protocol import TensorRule
    from loaders.quantization.packed_format import PackedFormat
    from loaders.quantization.quantization import Quantization

log = structlog.get_logger(__name__)

QUANT_METHOD = "tetrad"
_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
    "I16": torch.int16,
    "U8": torch.uint8,
}


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """Carries a checkpoint's quantisation and tensor list through `from_pretrained`."""

    def __init__(
        self,
        quantization: Quantization | None,
        tensors: Mapping[str, TensorInfo],
        *,
        adds_biases: bool = False,
        **_: object,
    ) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # an enum of known names
        self.quantization = quantization  # None packs nothing, and still keeps every dtype
        self.tensors = tensors
        self.adds_biases = adds_biases  # whether a tensor makes a bias that a class lacks

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedConfig:
        """Nothing here changes, and Transformers copies configs freely."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Describe it for Transformers' logs."""
        return {"quant_method": self.quant_method, "quantization": str(self.quantization)}


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):
    """Swaps in packed layers before Transformers loads the weights."""

    requires_calibration = False
    quantization_config: PackedConfig

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Or what is not packed would be cast to one dtype: float32 norms to halves, for one.
        self.pre_quantized = True

    def update_device_map(self, device_map: dict[str, Any] | None) -> dict[str, Any] | None:
        """Load onto the CPU where nothing is said."""
        return device_map if device_map is not None else {"": torch.device("cpu")}

    def get_new_dtype(self, converter: object, param: object, dtype: object) -> None:  # noqa: ARG002
        """Keep every tensor as it is stored; dtypes are settled once all are there."""
        return

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        config = self.quantization_config
        if config.quantization is not None:
            replace_linears(model, config.quantization, config.tensors)
            untie_packed(model)
        if config.adds_biases:
            add_biases(model, config.tensors)
        check_skeleton(model, config.tensors)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        for layer in packed_layers(model).values():
            layer.forget_initialised()

    def is_serializable(self) -> bool:
        """Prepared kernels are not written back."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights take no gradients."""
        return False


def replace_linears(
    model: nn.Module, quantization: Quantization, tensors: Mapping[str, TensorInfo]
) -> None:
    """Put a PackedLinear wherever the checkpoint holds packed tensors for an `nn.Linear`.

    The tensors decide which layers are packed (so `modules_in_block_to_quantize`,
    `modules_to_not_convert` and a quantised lm_head need no list); the settings and rules decide
    how. Raises TensorError where the two contradict each other.
    """
    packed_names = set(packed_modules(quantization, tensors))
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if strangers := sorted(packed_names - linears.keys()):
        raise TensorError(
            f"the checkpoint packs {len(strangers)} layers that this model does not have as linear"
            " layers:"
            f" {', '.join(strangers[:4])}"
        )
    for name in sorted(packed_names):
        linear = linears[name]
        packed = quantization.format_of(name)
        if packed is None:
            raise TensorError(f"{name} is packed, but by the settings it is not quantised")
        places = check_packed_tensors(name, packed, linear, tensors)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _awaiting(name, packed, linear, places))
    log.info("layers_packed", packed=len(packed_names), dense=len(linears) - len(packed_names))


def add_biases(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> None:
    """Give each linear layer that is not packed a place for a bias that the checkpoint holds.

    GGUF's architectures allow biases that Transformers' class of the same name has not.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or f"{name}.bias" not in tensors:
            continue
        bias = torch.empty(module.out_features, device=module.weight.device)
        module.bias = nn.Parameter(bias)


def untie_packed(model: PreTrainedModel) -> None:
    """Have a packed head stand for itself, also where config.json says that it is the embedding.

    Files say so of models whose head was quantised after all: the file's own head is used.
    """
    tied = model.all_tied_weights_keys
    for name in packed_layers(model):
        if tied.pop(f"{name}.weight", None) is not None:
            log.info("head_untied", name=name, reason="the checkpoint packs a head of its own")
            model.config.tie_word_embeddings = False


def packed_modules(
    quantization: Quantization, tensors: Mapping[str, TensorInfo]
) -> tuple[str, ...]:
    """Name the modules for which the checkpoint holds packed tensors."""
    ending = f".{layout_of(quantization.base).marker}"
    return tuple(sorted(name.removesuffix(ending) for name in tensors if name.endswith(ending)))


def check_packed_tensors(
    name: str, packed: PackedFormat, linear: nn.Linear, tensors: Mapping[str, TensorInfo]
) -> dict[str, TensorSpec]:
    """Return a layer's tensors by key. Raises TensorError unless they are what it needs."""
    try:
        rules = layout_of(packed).rules(linear.in_features, linear.out_features)
    except ValueError as error:
        raise TensorError(f"{name}: {error}") from error
    places = {}
    for key, rule in rules.items():
        tensor = tensors.get(f"{name}.{key}")
        if tensor is not None:
            _check_tensor(tensor, rule, packed, linear)
            places[key] = TensorSpec(tensor.shape, _DTYPES[tensor.dtype])
        elif rule.is_required:
            raise TensorError(
                f"{name}.{key} is missing; a {packed.quant_method.upper()} layer needs it"
            )
    if (bias := _find_bias(name, linear, tensors)) is not None:
        places["bias"] = TensorSpec(bias.shape, _DTYPES.get(bias.dtype, torch.float32))
    return places


def _check_tensor(
    tensor: TensorInfo, rule: TensorRule, packed: PackedFormat, linear: nn.Linear
) -> None:
    if tensor.shape != rule.shape:
        raise TensorError(
            f"{tensor.name} is {list(tensor.shape)}, expected {list(rule.shape)} for"
            f" {linear.in_features} inputs, {linear.out_features} outputs, {packed.bits} bits and"
            f" group size {packed.group_size}; the settings and the weights are from different"
            " revisions"
        )
    if tensor.dtype not in rule.dtypes:
        raise TensorError(f"{tensor.name} is {tensor.dtype}, expected {' or '.join(rule.dtypes)}")


def _find_bias(
    name: str, linear: nn.Linear, tensors: Mapping[str, TensorInfo]
) -> TensorInfo | None:
    bias = tensors.get(f"{name}.bias")
    if linear.bias is not None and bias is None:
        raise TensorError(f"{name}.bias is missing; this model's layer has a bias")
    if bias is not None and bias.shape != (linear.out_features,):
        raise TensorError(f"{name}.bias is {list(bias.shape)}, expected [{linear.out_features}]")
    return bias  # stored even where the model has none: AutoGPTQ wrote zeros for every layer


def _awaiting(
    name: str, packed: PackedFormat, linear: nn.Linear, places: Mapping[str, TensorSpec]
) -> PackedLinear:
    with torch.device("meta"):
        layer = PackedLinear.awaiting(
            packed, linear.in_features, linear.out_features, name=name, tensors=places
        )
    layer.expects_bias = linear.bias is not None
    return layer
