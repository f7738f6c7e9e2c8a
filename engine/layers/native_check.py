"""Compares a layer of kernels in C++ with PyTorch's, before a model is given such layers.

A few random rows go through the first layer of the model itself, as a prompt and as rows after it:
on which processor some kernel goes wrong nobody knows by its name. What both multiply by is
compared elsewhere, for all layers (`ways`, and the loaders' self-test).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from engine.attention.kv_cache import STORED_AS, KVCache, head_dim, num_kv_heads
from engine.attention.native_step import NativeStep
from engine.attention.paged import attend_onward
from engine.layers import native_llama
from engine.layers.llama import LlamaLayer, rotation_table
from engine.layers.native_linears import RoundingWeight
from engine.layers.native_llama import NativeLlamaLayer
from native import int4, llama_layers
from native.attention import Sequences

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.config import KVDtype

_PROMPT, _ALL = 20, 24  # tokens: the prompt is more than a block, and some rows follow
_BLOCK_SIZE, _TABLE = 16, (2, 0)
# How far what a layer adds, or keeps, may be off: in roundings of its weights, and of sums in
# float32 beside them. Roots of mean squares, as shares of what is expected.
_MAX_ROUNDINGS, _MAX_OF_SUMS = 8.0, 1e-4


def refusal(model: PreTrainedModel, kept_as: KVDtype) -> str | None:
    """Say why `NativeLlamaDecoder` cannot run a model, or not rightly here; None where it can.

    kept_as: what the cache keeps keys and values in. The model is left as it is.
    """
    reason = native_llama.refusal(model, kept_as)
    if reason is not None:
        return reason
    try:
        with torch.inference_mode():
            return _FirstLayer(model, kept_as).fault()
    except (RuntimeError, ValueError) as error:
        return f"C++ kernels failed: {error}"


class _FirstLayer:
    """A model's first layer in both ways, and what goes through it."""

    def __init__(self, model: Any, kept_as: KVDtype) -> None:
        body, self._config, self._kept_as = model.model, model.config, kept_as
        layer, embedding = body.layers[0], body.embed_tokens.weight
        self._native = NativeLlamaLayer(layer, self._config)
        self._torch = LlamaLayer(layer, self._config, torch.float32, is_batch_invariant=False)
        self._rotation = rotation_table(body.rotary_emb, _ALL, embedding, torch.float32)
        self._x = torch.randn(_ALL, embedding.shape[1], generator=torch.Generator().manual_seed(0))
        weights = [weight for joined in self._native.joined() for weight in joined.weights]
        units = [
            weight.unit_roundoff if isinstance(weight, RoundingWeight) else _unit(embedding.dtype)
            for weight in weights
        ]
        self._attended: list[Tensor] = []  # what attention gave, in turn
        self._allowed = _MAX_ROUNDINGS * max(*units, _unit(STORED_AS[kept_as])) + _MAX_OF_SUMS

    def fault(self) -> str | None:
        """Say what differs; None where nothing does by more than roundings."""
        cache = self._new_cache()
        expected = {
            "a prompt": self._by_torch(cache, 0, _PROMPT),
            "rows": self._by_torch(cache, _PROMPT, _ALL),
            "keys and values": _kept(cache),
            "attention of a prompt": self._attended[0],
            "attention of rows": self._attended[1],
        }
        self._attended.clear()
        for name, found in self._found().items():
            wanted = expected[name.partition(",")[0]]
            off = float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
            if not off <= self._allowed:  # what is no number is off, too
                return (
                    f"C++ kernels compute {name} otherwise than PyTorch: off by {off:.2e} in the"
                    f" first layer, {self._allowed:.2e} allowed"
                )
        return None

    def _found(self) -> dict[str, Tensor]:
        """Give the same by kernels in C++, rows in each way that steps may take them."""
        cache = self._new_cache()
        prompt = self._one_by_one(cache, 0, _PROMPT, has_pieces=True)
        rows = self._one_by_one(cache, _PROMPT, _ALL, has_pieces=False)
        found = {  # what comes of others after them
            "keys and values": _kept(cache),
            "attention of a prompt": self._attended[0],
            "attention of rows": self._attended[1],
            "a prompt": prompt,
            "rows": rows,
        }
        told = self._native.in_one_call()
        if told is not None:
            ways: dict[str, dict[str, bool]] = {
                "": {"are_many": False},
                " by the way of many": {"are_many": True},
            }
            if int4.may_use_tiles():
                ways[" by tile registers"] = {"are_many": True, "has_tiles": True}
            for way, choice in ways.items():
                how = f"all layers in one call{way}"
                found[f"rows, {how}"] = self._at_once(told, cache, **choice)
                found[f"keys and values, {how}"] = _kept(cache)
        return found

    def _new_cache(self) -> KVCache:
        return KVCache(
            num_layers=1,
            num_blocks=max(_TABLE) + 1,
            block_size=_BLOCK_SIZE,
            num_kv_heads=num_kv_heads(self._config),
            head_dim=head_dim(self._config),
            kept_as=self._kept_as,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    def _by_torch(self, cache: KVCache, first: int, stop: int) -> Tensor:
        rotation, before = self._rotation[first:stop], self._x[first:stop]
        step = _TorchStep(cache, first, stop, self._attended)
        is_prompt = first == 0
        cos, sin = rotation[:, :1], rotation[:, 1:]
        after: Tensor = self._torch(before.clone(), cos, sin, step, has_pieces=is_prompt)
        return after - before

    def _one_by_one(self, cache: KVCache, first: int, stop: int, *, has_pieces: bool) -> Tensor:
        before = self._x[first:stop]
        step = self._native_step(cache, first, stop, has_pieces=has_pieces)
        residual, delta = self._native(
            before.clone(), None, self._rotation, step, has_pieces=has_pieces
        )
        added: Tensor = residual + delta - before
        return added

    def _at_once(self, told: llama_layers.LlamaLayer, cache: KVCache, **choice: bool) -> Tensor:
        before = self._x[_PROMPT:]
        step = self._native_step(cache, _PROMPT, _ALL, has_pieces=False)
        layers = llama_layers.LlamaLayers([told], [cache.layer(0).values])
        residual = before.clone()
        layers.run(residual, self._rotation, step.slots, step.seen, num_layers=1, **choice)
        return residual - before

    def _native_step(
        self, cache: KVCache, first: int, stop: int, *, has_pieces: bool
    ) -> _NotedStep:
        seen = Sequences(
            tables=torch.tensor([_TABLE]),
            rows=torch.zeros(stop - first, dtype=torch.int64),
            positions=torch.arange(first, stop),
            block_size=_BLOCK_SIZE,
        )
        pieces = torch.tensor([[stop - first, first, 0]]) if has_pieces else None
        return _NotedStep(cache, _slots(first, stop), seen, pieces, self._attended)


@dataclass(frozen=True, slots=True)
class _TorchStep:
    """What tokens of one sequence attend to, by PyTorch."""

    cache: KVCache
    first: int
    stop: int
    attended: list[Tensor]

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Store the new keys and values, then attend; see `AttentionStep`."""
        self.cache.write(layer_index, _slots(self.first, self.stop), key_value)
        seen = self.cache.gather(layer_index, torch.tensor(_TABLE))[: self.stop]
        attended = attend_onward(query, seen, self.first, scale, window)
        self.attended.append(attended.flatten(1))
        return attended


@dataclass(frozen=True)
class _NotedStep(NativeStep):
    """A step that notes what its kernels give."""

    attended: list[Tensor] = field(default_factory=list)

    def attend_joined(self, *args: Any, **others: Any) -> Tensor:
        """Attend as any such step does."""
        attended = super().attend_joined(*args, **others)
        self.attended.append(attended.float())
        return attended


def _kept(cache: KVCache) -> Tensor:
    return cache.gather(0, torch.tensor(_TABLE))[:_ALL].clone()


def _slots(first: int, stop: int) -> Tensor:
    positions = torch.arange(first, stop)
    return torch.tensor(_TABLE)[positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2
