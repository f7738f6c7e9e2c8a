"""Holds a built model against its checkpoint: every tensor found its place, or is accounted for.

Transformers drops names in silence that its classes list, so its report is not relied on: each
name's place is looked up again, by the same renamings, and the two must agree.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from loaders.errors import TensorError
from loaders.model.leftovers import HEAD_COPIES, ROTARY_TABLE, LeftOver, log_left_over
from loaders.model.stored_tensors import tensor_reader
from loaders.model.tensor_copies import is_close, is_copy
from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.opened import OpenedCheckpoint

_UNUSED_LAYERS = "layers beyond num_hidden_layers"


@dataclass(slots=True)
class _Places:
    """Where a checkpoint's tensors belong in a model."""

    filled: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # Places made of several tensors, or of a part of one.
    converted: set[str] = field(default_factory=set)
    left_over: dict[str, str] = field(default_factory=dict)  # name as Transformers reports it → own


def check_coverage(
    model: PreTrainedModel,
    opened: OpenedCheckpoint,
    report: Mapping[str, Any],
    *,
    is_stock: bool,
) -> tuple[Suspicion, ...]:
    """Account for every tensor of the checkpoint; return what gives reason to doubt.

    report: Transformers' own of the loading. is_stock: its quantizers took what they liked, so the
    report is all there is. Raises TensorError for a tensor that is neither used nor known, and for
    a place that none or two of them fill.
    """
    unexpected = set(report["unexpected_keys"])
    if is_stock:
        left_over = {name: name for name in unexpected}
    else:
        places = _find_places(model, opened.tensors)
        _check_filled(model, places)
        left_over = {name: name for name in unexpected} | places.left_over
    names = set(left_over.values()) - opened.unused_layers
    infos = [opened.tensors[name] for name in sorted(names) if name in opened.tensors]
    if strangers := sorted(names - opened.tensors.keys()):
        raise TensorError(
            f"Transformers leaves {strangers[0]} aside, which no tensor of the checkpoint accounts"
            " for; the checkpoint does not fit this model"
        )
    read = tensor_reader(opened)
    # As the file has it: the model's own is set to what is used.
    is_tied = getattr(opened.config.get_text_config(), "tie_word_embeddings", False)
    left = [LeftOver(info, model, partial(_values, read, info.name), is_tied) for info in infos]
    _log_kinds(left, opened.unused_layers)
    return (
        *_rotary_doubts(model, [info.name for info in infos], read),
        *_head_doubts(model, opened.tensors),
    )


def _find_places(model: PreTrainedModel, names: Iterable[str]) -> _Places:
    """Look up each name's place as Transformers does when it loads."""
    expected = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    targets = {source: c.target_patterns for c in converters for source in c.source_patterns}
    rename = partial(
        rename_source_key, base_model_prefix=model.base_model_prefix, meta_state_dict=expected
    )
    places = _Places()
    for name in names:
        place, source = rename(name, renamings, converters)
        if place not in expected and name in expected:
            place, source = rename(name, [], [])
        if place not in expected:
            places.left_over[place] = name
        elif source is None:
            places.filled[place].append(name)
        else:
            first, *others = targets[source]
            places.converted |= {place, *(place.replace(first, other) for other in others)}
    return places


def _check_filled(model: PreTrainedModel, places: _Places) -> None:
    """Raise TensorError unless one tensor, and no more, fills each of the model's own."""
    for place, names in places.filled.items():
        if len(names) > 1:
            raise TensorError(
                f"{names[0]} and {names[1]} are both read as {place}; one of them does not belong"
                " here"
            )
    is_filled = places.filled.keys() | places.converted
    for pair in model.all_tied_weights_keys.items():
        if not is_filled.isdisjoint(pair):
            is_filled |= set(pair)
    parameters = list(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for name, parameter in parameters if name in is_filled}  # by any name
    if missing := [name for name, parameter in parameters if id(parameter) not in filled]:
        raise TensorError(
            f"the checkpoint lacks {len(missing)} tensors that the model needs:"
            f" {', '.join(missing[:6])}; download it again"
        )


def _log_kinds(left_over: Iterable[LeftOver], unused_layers: frozenset[str]) -> None:
    """Say what is left over by kind. Raises TensorError for what is of none."""
    kinds: dict[str, list[str]] = defaultdict(list)
    if unused_layers:
        kinds[_UNUSED_LAYERS] = sorted(unused_layers)
    for tensor in left_over:
        kinds[tensor.kind()].append(tensor.info.name)
    for kind, names in kinds.items():
        log_left_over(kind, names)


def _values(read: Callable[[str], Tensor | None], name: str) -> Tensor:
    values = read(name)
    if values is None:
        raise TensorError(f"{name} is named by a header and cannot be read; download it again")
    return values


def _rotary_doubts(
    model: PreTrainedModel, left_over: Iterable[str], read: Callable[[str], Tensor | None]
) -> Iterator[Suspicion]:
    """Yield a doubt where a stored table says other frequencies than config.json."""
    computed = list(_rotary_tables(model))
    for name in left_over:
        if not name.endswith(ROTARY_TABLE):
            continue
        stored = _values(read, name).float().flatten()
        if not any(stored.shape == table.shape and is_close(stored, table) for table in computed):
            yield Suspicion(
                "rotary_table",
                f"{name} holds other frequencies than config.json's rotary settings give, which are"
                " the ones in use; rope_theta or a rope scaling may be missing there",
            )
            return


def _rotary_tables(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield every table that the model computes, with and without scaling."""
    settings = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    bases = [s["rope_theta"] for s in (settings, *nested) if "rope_theta" in s]
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            table = buffer.detach().float().cpu()
            yield table
            for base in bases:
                yield base ** -(torch.arange(len(table)) / len(table))


def _head_doubts(model: PreTrainedModel, tensors: Mapping[str, TensorInfo]) -> Iterator[Suspicion]:
    """Yield a doubt where a head is the file's own though config.json says that it is tied.

    A copy in the same precision is tied by Transformers; what differs is used as it is stored.
    """
    head: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    table = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not is_tied or not isinstance(head, nn.Linear) or f"{name}.weight" not in tensors:
        return
    if isinstance(table, nn.Embedding) and is_copy(head.weight, table.weight):
        log_left_over(HEAD_COPIES, [f"{name}.weight"])
        return
    yield Suspicion(
        "untied_head",
        f"config.json says that the head is the embedding (tie_word_embeddings), but the files hold"
        f" a {name}.weight with other values; it is used",
    )
