"""From a step's tokens to logits: with layers of the engine's own, or with Transformers'.

The model is taken over: its attention becomes the paged one, and a known family's layers are
replaced. What the engine would get wrong is refused here, before the first request, partly by
looking at the configuration and partly by running one token and looking at what reaches attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import structlog
import torch
from torch import nn

from engine.attention import interface as attention
from engine.attention.interface import ModelInput
from engine.attention.kv_cache import head_dim, num_kv_heads, num_layers
from engine.errors import EngineStartError, UnsupportedArchitectureError
from engine.execution.host_reads import HostReads
from engine.execution.rope import fix_rope, longest_with_fixed_rope, rope_types
from engine.layers import fuse_layers, native_check
from engine.layers.truncation import only_first_layers
from engine.layers.weights import InvariantLinear, LinearsInUse, LinearWeight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from engine.config import KVDtype
    from engine.kernels.step_kernels import StepKernels

log = structlog.get_logger(__name__)

_ALL_ROWS = 0  # Transformers keeps the last so many, and all where that is none
_KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}


class Decoder(Protocol):
    """A model as the runner sees it."""

    @property
    def is_recordable(self) -> bool:
        """Whether a graph holds a step; False where the model's layers wait for the device."""

    def logits(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens; [num_seqs, vocab] float32."""

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the first layers alone until the end of the block, the last norm and head after."""

    def linears(self) -> Iterator[LinearsInUse]:
        """Give the linear layers that `logits` multiplies by, by the names that the model had."""


@runtime_checkable
class HeadApart(Protocol):
    """A decoder whose head can be run on a few rows at a time; `logits` does both at once."""

    def last_rows(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens up to the head; [num_seqs, hidden]."""

    def head(self, rows: Tensor) -> Tensor:
        """Go on with some of these rows; [rows, vocab] float32."""


def make_decoder(
    model: PreTrainedModel,
    max_model_len: int,
    *,
    is_batch_invariant: bool = False,
    kernels: StepKernels | None = None,
    native_cache: KVDtype | None = None,
    is_native_asked: bool = False,
) -> Decoder:
    """Take a model over; `UnsupportedArchitectureError` where it would not be run rightly.

    kernels: of a GPU's path; None for the layers that the CPU runs. native_cache: what keys and
    values are kept in, where layers of kernels in C++ may be taken; None where they may not.
    is_native_asked: whether they were asked for by name: `EngineStartError` where they cannot be.
    """
    _check_placement(model)
    _check_config(model.config, max_model_len)
    fix_rope(model)
    model.train(False)
    is_native = native_cache is not None and _is_native(
        model, native_cache, is_asked=is_native_asked
    )
    decoder: Decoder | None = fuse_layers(
        model,
        max_model_len,
        is_batch_invariant=is_batch_invariant,
        kernels=kernels,
        is_native=is_native,
    )
    if decoder is not None:
        name = "native" if is_native else None
        log.info(
            "decoder_chosen",
            model=type(model).__name__,
            layers="fused",
            kernels=name if kernels is None else kernels.name,
        )
        return decoder
    if is_batch_invariant:
        _make_linears_invariant(model)
    decoder = TransformersDecoder(model)
    log.info("decoder_chosen", model=type(model).__name__, layers="Transformers' own")
    return decoder


def _is_native(model: PreTrainedModel, kept_as: KVDtype, *, is_asked: bool) -> bool:
    """Whether the model gets layers of kernels in C++; says why where it does not."""
    reason = native_check.refusal(model, kept_as)
    if reason is not None and is_asked:
        raise EngineStartError(
            f"cpu_kernels is 'native': {reason}; 'auto' takes PyTorch's layers instead"
        )
    if reason is not None:
        log.info("native_layers_refused", model=type(model).__name__, reason=reason)
    return reason is None


class TransformersDecoder:
    """Any causal language model, with its own layers around paged attention.

    Activations have the dtype that the model was loaded in; on CPU that must be float32.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        attention.register()
        model.set_attn_implementation(attention.ATTENTION_NAME)
        host_reads = self._probe()
        self.is_recordable = not host_reads
        if host_reads:
            log.warning(
                "steps_not_recordable",
                model=type(model).__name__,
                operations=sorted(host_reads),
                consequence="its layers wait for the device, so steps run without graphs",
            )

    def logits(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens; [num_seqs, vocab] float32."""
        rows = model_input.logits_indices
        output = self._model(
            input_ids=model_input.token_ids.unsqueeze(0),
            position_ids=model_input.position_ids.unsqueeze(0),
            logits_to_keep=_ALL_ROWS if rows is None else rows,
            use_cache=False,
            paged=model_input.attention,
        )
        logits: Tensor = output.logits[0]
        return logits.float()

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the first layers alone until the end of the block, the last norm and head after."""
        return only_first_layers(self._model, num_layers)

    def linears(self) -> Iterator[LinearsInUse]:
        """Give the linear layers that `logits` multiplies by, each by itself."""
        for name, module in self._model.named_modules():
            if isinstance(module, (LinearWeight, InvariantLinear)):
                yield LinearsInUse((name,), (module.out_features,), cast("nn.Module", module))

    def _probe(self) -> set[str]:
        """Run one token through all layers and check what they ask of attention.

        Returns the operations by which they waited for the device.
        """
        probe = _AttentionProbe(self._model)
        zero = torch.zeros(1, dtype=torch.int64, device=self._model.device)
        name = type(self._model).__name__
        host_reads = HostReads()
        try:
            with torch.inference_mode(), host_reads:
                logits = self.logits(ModelInput(zero, zero, zero, probe))
        except TypeError as error:
            raise UnsupportedArchitectureError(
                f"{name} does not take the arguments of a causal language model: {error}"
            ) from error
        probe.check_complete()
        if logits.shape[0] != 1:
            raise UnsupportedArchitectureError(
                f"{name} gave logits of shape {tuple(logits.shape)} for one token"
            )
        return host_reads.names


class _AttentionProbe:
    """An `AttentionStep` that only notes what it is asked for."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._name = type(model).__name__
        self._config = model.config
        self._device = model.device
        self._windows: dict[int, int | None] = {}  # by layer

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,  # noqa: ARG002
        window: int | None,
    ) -> Tensor:
        """Give back the query, which has the answer's shape."""
        expected = (1, 2, num_kv_heads(self._config), head_dim(self._config))
        if tuple(key_value.shape) != expected:
            self._refuse(f"keys and values of shape {tuple(key_value.shape)}, not {expected}")
        if self._device.type == "cpu" and key_value.dtype != torch.float32:
            self._refuse(f"{key_value.dtype} on CPU, not float32; load it with dtype float32")
        if layer_index in self._windows:
            self._refuse(f"layer {layer_index} attend twice")
        self._windows[layer_index] = window
        return query

    def check_complete(self) -> None:
        """Refuse a model that did not send every layer's attention here, windows included."""
        expected = set(range(num_layers(self._config)))
        if self._windows.keys() != expected:
            self._refuse(
                f"attention of its own in layers {sorted(expected - self._windows.keys())}"
                " instead of Transformers' attention interface"
            )
        kinds = getattr(self._config.get_text_config(decoder=True), "layer_types", None)
        if kinds is None:
            return
        for layer, kind in enumerate(kinds):
            if (kind == "sliding_attention") != (self._windows[layer] is not None):
                self._refuse(f"{kind} in layer {layer} with window {self._windows[layer]}")

    def _refuse(self, what: str) -> None:
        raise UnsupportedArchitectureError(f"{self._name} uses {what}; the engine cannot run it")


def _make_linears_invariant(model: PreTrainedModel) -> None:
    """Put every linear layer behind one that multiplies each row as if it were alone."""
    others = {type(module).__name__ for module in model.modules()} & {"Conv1D"}
    if others:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has layers of type {', '.join(others)}, which batch_invariant"
            " does not cover; serve it without"
        )
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) or _is_linear_weight(module):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, InvariantLinear(module))


def _is_linear_weight(module: nn.Module) -> bool:
    return isinstance(module, LinearWeight)


def _check_placement(model: PreTrainedModel) -> None:
    devices = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1 or devices == {"meta"}:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} lies on {', '.join(sorted(devices))}; the engine runs a model"
            " on one device: load it onto one"
        )


def _check_config(config: PretrainedConfig, max_model_len: int) -> None:
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{config.model_type} is an encoder-decoder model; the engine runs decoders only"
        )
    longest = longest_with_fixed_rope(config)
    if longest is not None and longest < max_model_len:
        raise UnsupportedArchitectureError(
            f"the model's rope type is {', '.join(sorted(rope_types(text)))}, whose angles beyond"
            f" {longest} tokens depend on the longest sequence of a batch; max_model_len is"
            f" {max_model_len}: lower it to {longest}"
        )
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise UnsupportedArchitectureError(
            f"the model caps attention scores at {text.attn_logit_softcapping}; paged attention"
            " cannot"
        )
    unknown = set(getattr(text, "layer_types", None) or ()) - _KNOWN_LAYER_TYPES
    if unknown:
        raise UnsupportedArchitectureError(
            f"the model has layers of type {', '.join(sorted(unknown))}; the engine knows"
            f" {', '.join(sorted(_KNOWN_LAYER_TYPES))}"
        )
    most = getattr(text, "max_position_embeddings", None)
    if not rope_types(text) and most is not None and most < max_model_len:
        raise UnsupportedArchitectureError(
            f"the model has {most} learned positions, max_model_len is {max_model_len}; lower it"
        )
