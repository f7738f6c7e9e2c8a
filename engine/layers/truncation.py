"""A model's first layers by themselves, for a while: what can be computed twice in little time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn

from engine.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


LayerKind = TypeVar("LayerKind")


class LayerList(Generic[LayerKind]):
    """A decoder that runs its layers one after another, from a list."""

    _layers: list[LayerKind]

    @contextmanager
    def first_layers(self, num_layers: int) -> Iterator[None]:
        """Run the first layers alone until the end of the block, the last norm and head after."""
        layers, self._layers = self._layers, self._layers[:num_layers]
        try:
            yield
        finally:
            self._layers = layers


@contextmanager
def only_first_layers(model: PreTrainedModel, num_layers: int) -> Iterator[None]:
    """Have a model of Transformers' run its first layers alone, and the last norm and head after.

    Raises UnsupportedArchitectureError where its layers are kept in no list that is found.
    """
    body: Any = model.base_model
    total: int = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {
        name: module
        for name, module in body.named_children()
        if isinstance(module, nn.ModuleList) and len(module) == total
    }
    if len(lists) != 1:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} keeps {len(lists)} lists of {total} layers, one was expected"
        )
    ((name, layers),) = lists.items()
    setattr(body, name, nn.ModuleList(list(layers)[:num_layers]))
    try:
        yield
    finally:
        setattr(body, name, layers)
