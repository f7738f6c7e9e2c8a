"""How far a model's rotary angles follow from the position alone.

Two rope types of Transformers change all angles of a batch once its longest sequence passes the
length that the model was first trained for. Up to that length they are like any other; beyond it,
mates would change each other's answers, and a sequence's own cached keys would be of other angles
than the next ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def rope_types(text: PretrainedConfig) -> set[str]:
    """Name the rope types in use: one, or one for each kind of layer."""
    return {str(found["rope_type"]) for found in _rope_parameters(text)}


def longest_with_fixed_rope(config: PretrainedConfig) -> int | None:
    """Return how many positions have angles of their own; None where all have."""
    text: Any = config.get_text_config(decoder=True)
    limits = []
    for parameters in _rope_parameters(text):
        kind = str(parameters["rope_type"])
        if "dynamic" in kind:
            limits.append(int(text.max_position_embeddings))
        elif "longrope" in kind:
            limits.append(int(parameters["original_max_position_embeddings"]))
    return min(limits, default=None)


def fix_rope(model: PreTrainedModel) -> None:
    """Keep the model from looking at a batch for its angles; right within the length above."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = "default"  # type: ignore[assignment]  # a name, not a tensor
        elif isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]


def _rope_parameters(text: PretrainedConfig) -> list[dict[str, Any]]:
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [found for found in (parameters, *nested) if found.get("rope_type") is not None]
