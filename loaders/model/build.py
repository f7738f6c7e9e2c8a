"""Has Transformers build a model and fill it, and checks that every tensor found its place.

Packed layers come in through `loaders.model.quantizer`; they hold the checkpoint's own tensors
until `loaders.model.prepare` makes kernels of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from loaders.errors import CheckpointError, TensorError
from loaders.model.coverage import check_coverage
from loaders.model.quantizer import PackedConfig
from loaders.model.skeleton import check_unpacked
from loaders.model.stock import missing_packages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel

    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.placement import DeviceMap
    from loaders.reports.suspicion import Suspicion

# What Transformers and safetensors raise on settings and files that make no sense.
_BUILD_ERRORS = (
    AssertionError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    SafetensorError,
)


def build_model(
    opened: OpenedCheckpoint, device_map: DeviceMap, *, is_stock: bool
) -> tuple[PreTrainedModel, tuple[Suspicion, ...]]:
    """Build the model with its weights on their devices; return it and reasons to doubt it.

    is_stock: leave the quantisation to Transformers. Raises CheckpointError, TensorError among
    them, and BackendError where a package is missing.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(opened.config)]
    try:
        arguments = _own_reading(opened, is_stock=is_stock)
        if not arguments:  # else it is held against the tensors when its layers are packed
            check_unpacked(model_class, opened.config, opened.tensors, is_stock=is_stock)
        with _reported_here():
            loaded = model_class.from_pretrained(
                None if opened.read_weights is not None else opened.folder,
                config=opened.config,
                device_map=device_map,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below with the tensor's name
                **arguments,
            )
    except ImportError as error:
        raise missing_packages("this checkpoint", [f"a package ({error})"]) from error
    except _BUILD_ERRORS as error:
        raise CheckpointError(
            f"Transformers cannot build this checkpoint: {type(error).__name__}: {error}"
        ) from error
    model: PreTrainedModel = loaded[0]
    _check_report(loaded[1])
    suspicions = check_coverage(model, opened, loaded[1], is_stock=is_stock)
    model.requires_grad_(requires_grad=False)
    return model, suspicions


@contextmanager
def _reported_here() -> Iterator[None]:
    """Keep Transformers from telling of tensors by itself, in tables; its report is told here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # A server's log takes lines, not bars.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _own_reading(opened: OpenedCheckpoint, *, is_stock: bool) -> dict[str, Any]:
    """Say what is read here and not by Transformers: packed layers, and files not its own."""
    arguments: dict[str, Any] = {}
    packed_here = None if is_stock else opened.quantization
    if packed_here is not None or opened.read_weights is not None:
        is_gguf = opened.read_weight is not None  # shards that no index names are read here, too
        arguments["quantization_config"] = PackedConfig(
            packed_here, opened.tensors, adds_biases=is_gguf
        )
    if opened.read_weights is not None:
        arguments["state_dict"] = opened.read_weights()
    return arguments


def _check_report(report: Mapping[str, Any]) -> None:
    """Raise TensorError for what is missing or of another shape."""
    if missing := sorted(report["missing_keys"]):
        raise TensorError(
            f"the checkpoint lacks {len(missing)} tensors that the model needs:"
            f" {', '.join(missing[:6])};"
            " download it again"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise TensorError(f"{name} is {list(found)}, expected {list(expected)} by config.json")
