"""Says which layers are prepared together: joined to one kernel before they are packed.

Joined are layers that read one input, where what they hold can stand in one weight. The act order
of a layer that reads what a joined pair computes, element by element, is folded into the pair's
outputs, so that nobody has to sort them. How they are packed is `loaders.model.prepare`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.model.packed_linear import PackedLinear


@dataclass(frozen=True, slots=True)
class _SharedInput:
    """Layers of a decoder layer that read one input, by their names in it."""

    names: tuple[str, ...]
    read_by: str | None = None  # what reads an elementwise function of their outputs, if one does


# Those whose decoder layers hold exactly these, and whose act orders nothing else depends on.
# Attention's outputs are no elementwise function of v's: its act order is stored by attention.
_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_SHARED_INPUTS = (
    _SharedInput(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    _SharedInput(("mlp.gate_proj", "mlp.up_proj"), read_by="mlp.down_proj"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Layers that are prepared at once; most are alone."""

    names: tuple[str, ...]
    output_order: Tensor | None = None  # of each one's own outputs, place → output; None: natural


def prepared_together(
    model: PreTrainedModel, waiting: Mapping[str, PackedLinear], joinable: Mapping[str, str]
) -> Iterator[Together]:
    """Give every waiting layer once, each set where its first layer comes.

    joinable: the backends' names of the layers that may be joined or sorted for others. Looks at
    tensors as it goes, so those of layers that were not given yet must still be there.
    """
    sets = _possible_sets(model, waiting)
    given: set[str] = set()
    for name in waiting:
        if name in given:
            continue
        together = Together((name,))
        if (shared := sets.get(name)) is not None and _can_join(shared.names, waiting, joinable):
            together = Together(shared.names, _order_wanted(shared, waiting, joinable))
        given.update(together.names)
        yield together


def _possible_sets(
    model: PreTrainedModel, waiting: Mapping[str, PackedLinear]
) -> dict[str, _SharedInput]:
    """Name the sets of the model's layers in full, by the first layer of each."""
    if not _has_own_layers(model):
        return {}
    found: dict[str, _SharedInput] = {}
    for shared in _SHARED_INPUTS:
        first = shared.names[0]
        for name in waiting:
            if name.endswith(f".{first}"):
                prefix = name.removesuffix(first)
                reader = None if shared.read_by is None else prefix + shared.read_by
                found[name] = _SharedInput(tuple(prefix + part for part in shared.names), reader)
    return found


def _has_own_layers(model: PreTrainedModel) -> bool:
    """Whether the engine runs layers of its own for such a model.

    Transformers' forward would multiply by the whole set for each layer of it. The engine decides
    by the same (`engine.layers.llama.is_known`); a test holds the two together.
    """
    config: Any = model.config
    return (
        type(model) in _FAMILIES  # a subclass may compute something else
        and config.hidden_act in ("silu", "swish")
        and config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    )


def _can_join(
    names: Sequence[str], waiting: Mapping[str, PackedLinear], joinable: Mapping[str, str]
) -> bool:
    if not all(name in waiting and name in joinable for name in names):
        return False
    first, *others = (waiting[name] for name in names)
    return (
        len({joinable[name] for name in names}) == 1
        and all(other.device == first.device for other in others)
        and all(first.waiting.can_stand_beside(other.waiting) for other in others)
    )


def _order_wanted(
    shared: _SharedInput, waiting: Mapping[str, PackedLinear], joinable: Mapping[str, str]
) -> Tensor | None:
    """Return the order in which the reader of a set's outputs wants them, None if the natural."""
    first, reader = waiting[shared.names[0]], waiting.get(shared.read_by or "")
    if reader is None or shared.read_by not in joinable or reader.device != first.device:
        return None
    return reader.waiting.input_order().permutation
