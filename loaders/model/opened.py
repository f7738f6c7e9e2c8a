"""What a model is loaded from, whatever its files are: settings, tensors, and who reads them.

Opening reads small files and headers; weights are read when the model is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loaders.checkpoint.claims import check_claims
from loaders.checkpoint.config import make_model_config, read_config
from loaders.checkpoint.files import read_checkpoint
from loaders.checkpoint.unused_layers import find_unused_layers
from loaders.errors import BackendError, QuantizationNotFoundError, UnsupportedQuantizationError
from loaders.gguf.files import find_file
from loaders.gguf.model import check_shapes, open_model
from loaders.gguf.text_files import write_text_files
from loaders.model.stock import hand_to_transformers
from loaders.model.unindexed_shards import read_tensors
from loaders.quantization.settings import read_quantization
from loaders.quantization.stored_values import hold_against_values
from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig

    from loaders.checkpoint.files import Checkpoint, TensorInfo
    from loaders.checkpoint.unused_layers import UnusedLayers
    from loaders.quantization.quantization import Quantization

_LANGUAGE_MODELS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that has been opened and checked as far as headers tell."""

    folder: Path  # of the small files: tokenizer, template, generation settings
    files: tuple[Path, ...]  # with weights
    tensors: Mapping[str, TensorInfo]  # without those of layers that the model does not have
    config: PreTrainedConfig
    quantization: Quantization | None  # None for a plain checkpoint
    # Gives the tensors by name; None where Transformers reads the folder's files itself.
    read_weights: Callable[[], dict[str, Tensor]] | None = None
    # Gives one of them, None where there is none by that name; None where a file of safetensors has
    # each by its name.
    read_weight: Callable[[str], Tensor | None] | None = None
    unused_layers: frozenset[str] = frozenset()  # tensors of layers beyond the config's number
    suspicions: tuple[Suspicion, ...] = ()  # what settings and headers gave reason to doubt


def open_checkpoint(
    folder: Path, file: str | None, cache_dir: Path | None, *, for_stock: bool = False
) -> OpenedCheckpoint:
    """Open the GGUF file that is named, or the only one, or else the folder's safetensors.

    for_stock: leave the quantisation to Transformers, whatever it is.

    Raises LoadError.
    """
    has_safetensors = next(folder.glob("*.safetensors"), None) is not None
    path = None if file is None and has_safetensors else find_file(folder, file)
    if path is None:
        return open_safetensors(folder, for_stock=for_stock)
    if for_stock:
        raise BackendError(f"backend stock does not read GGUF ({path.name}); use --backend auto")
    return open_gguf(path, cache_dir)


def open_safetensors(folder: Path, *, for_stock: bool = False) -> OpenedCheckpoint:
    """Open a Transformers checkpoint."""
    checkpoint = read_checkpoint(folder)
    raw_config = read_config(folder)
    # What is packed in a foreign way is said first, as the catalogue says it.
    quantization = _read_quantization(checkpoint, raw_config, for_stock=for_stock)
    check_claims(raw_config, checkpoint.tensors)
    config = make_model_config(raw_config)
    num_layers = _num_layers(config)
    unused = find_unused_layers(checkpoint.tensors, raw_config, num_layers)
    if for_stock:
        hand_to_transformers(config, raw_config)
    # The file whose headers were checked is the one that is read, whatever else lies there.
    config.transformers_weights = checkpoint.weights_file
    is_read_here = checkpoint.weights_file is None
    if is_read_here and for_stock:
        raise BackendError(
            f"backend stock finds {len(checkpoint.shards)} shards only by an index with metadata,"
            f" which {folder} lacks; use --backend auto"
        )
    return OpenedCheckpoint(
        folder=folder,
        files=checkpoint.shards,
        tensors={n: t for n, t in checkpoint.tensors.items() if n not in unused.names},
        config=config,
        quantization=quantization,
        read_weights=partial(read_tensors, checkpoint.tensors) if is_read_here else None,
        unused_layers=unused.names,
        suspicions=(*_doubt_layers(unused, num_layers), *_doubt_class(raw_config)),
    )


def _num_layers(config: PreTrainedConfig) -> int | None:
    """Count the decoder's layers; None where a configuration counts something else."""
    text = config.get_text_config()
    counts = (getattr(text, key, None) for key in ("decoder_layers", "num_hidden_layers"))
    return next((count for count in counts if isinstance(count, int)), None)


def _doubt_layers(unused: UnusedLayers, num_layers: int | None) -> Iterator[Suspicion]:
    """Yield a doubt where the files hold more layers than config.json counts."""
    if unused.unexplained:
        yield Suspicion(
            "unused_layers",
            f"the files hold layer {', '.join(map(str, unused.unexplained[:8]))}, config.json says"
            f" num_hidden_layers {num_layers}, so they are not used; config.json may be another"
            " model's",
        )


def _doubt_class(raw_config: Mapping[str, Any]) -> Iterator[Suspicion]:
    """Yield a doubt where config.json names the class of another model type.

    Classes that Transformers does not know say nothing: old files have names of their own.
    """
    named, model_type = raw_config.get("architectures"), raw_config["model_type"]
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    if own not in names and not _LANGUAGE_MODELS.isdisjoint(names):
        yield Suspicion(
            "other_class",
            f"config.json says model_type {model_type}, whose class is {own}, and architectures"
            f" {', '.join(names)[:80]}; the model type is followed",
        )


def _read_quantization(
    checkpoint: Checkpoint, raw_config: Mapping[str, Any], *, for_stock: bool
) -> Quantization | None:
    """Return how it is quantised; None for a plain one, and for what only stock reads."""
    try:
        quantization = read_quantization(checkpoint, raw_config)
    except (UnsupportedQuantizationError, QuantizationNotFoundError):
        if for_stock:
            return None
        raise
    if quantization is None:
        return None
    quantization = hold_against_values(quantization, checkpoint.tensors)
    if for_stock and quantization.remarks:
        raise BackendError(
            f"backend stock reads weights by their settings alone, and those are wrong:"
            f" {'; '.join(quantization.remarks)}; use --backend auto"
        )
    return quantization


def open_gguf(path: Path, cache_dir: Path | None) -> OpenedCheckpoint:
    """Open a GGUF model by its (first) file; its small files are written to the cache."""
    model = open_model(path)
    config = make_model_config(model.config)
    check_shapes(model, config)
    return OpenedCheckpoint(
        folder=write_text_files(model, cache_dir),
        files=model.files.paths,
        tensors=model.tensors,
        config=config,
        quantization=model.quantization,
        read_weights=model.weights,
        read_weight=model.weight,
        suspicions=model.suspicions,
    )
