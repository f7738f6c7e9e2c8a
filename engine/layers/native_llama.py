"""The Llama family's decoder on the CPU by kernels in C++: what `llama` computes, in fewer passes.

What a layer adds to the residual is added by the next norm. Few rows go through all layers in one
call where C++ has all of their weights; any others layer by layer, as those of prompts do:

    add, norm ─ q k v ─ rotate, store ─ attend ─ output ─ add, norm ─ gate up ─ SiLU × ─ down

The residual is float32, and so is everything else but in pieces of prompts: there rows have the
type that products round them to. That is the place where `llama` has them rounded, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import structlog
import torch
from torch import nn

from engine.attention.kv_cache import STORED_AS, head_dim, num_kv_heads
from engine.layers.llama import is_known, rotation_table, sliding_window
from engine.layers.native_linears import NativeLinears
from engine.layers.truncation import LayerList
from engine.layers.weights import LinearsInUse
from native import llama_layers, rows
from native.attention import HEAD_DIMS, MAX_SHARED
from native.llama_layers import KEPT_TYPES, LlamaLayer
from native.rows import HeadNorm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.attention.interface import ModelInput
    from engine.attention.kv_cache import KVCache
    from engine.attention.native_step import NativeStep
    from engine.config import KVDtype

log = structlog.get_logger(__name__)

_NAMES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# Ways of weights that all layers in one call multiply by, as `ManyWaysWeight` names them.
_FEW, _PANELS, _REGISTERS = "native", "native panels", "native registers"


def refusal(model: PreTrainedModel, kept_as: KVDtype) -> str | None:
    """Say why `NativeLlamaDecoder` cannot run a model; None where it can.

    kept_as: what the cache keeps keys and values in.
    """
    if not is_known(model):
        return f"{type(model).__name__} is of none of the families that have layers of C++ kernels"
    config: Any = model.config
    width, num_heads = head_dim(config), config.num_attention_heads
    if width not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"its heads are {width} wide, and C++ kernels are for {known}"
    if num_heads // num_kv_heads(config) > MAX_SHARED:
        return f"more than {MAX_SHARED} query heads share a key head"
    if STORED_AS[kept_as] not in KEPT_TYPES:
        return f"C++ kernels do not read keys and values kept as {kept_as.value}"
    return None


class NativeLlamaDecoder(LayerList["NativeLlamaLayer"]):
    """Embedding, layers, last norm and head of a model that `refusal` has nothing against."""

    is_recordable = True

    def __init__(self, model: Any, max_model_len: int) -> None:
        body = model.model
        # Widened by the row, as `LlamaDecoder` does.
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._rotation = rotation_table(
            body.rotary_emb, max_model_len, self._embedding, torch.float32
        )
        for index, layer in enumerate(body.layers):
            body.layers[index] = NativeLlamaLayer(layer, model.config)  # lets the old one go
        self._layers: list[NativeLlamaLayer] = list(body.layers)
        self._at_once = LayersAtOnce(self._layers)
        self._norm = AddNorm(body.norm)
        self._head = NativeLinears([model.lm_head])

    def logits(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens; [num_seqs, vocab] float32."""
        # Whoever makes this decoder makes steps of that kind only.
        attention = cast("NativeStep", model_input.attention)
        residual = self._embedding.index_select(0, model_input.token_ids).to(torch.float32)
        delta: Tensor | None = None
        wanted = model_input.logits_indices
        if not model_input.has_pieces and self._at_once.takes(residual.shape[0]):
            self._at_once.run(residual, self._rotation, attention, len(self._layers))
            if wanted is not None and wanted.shape[0] < residual.shape[0]:
                residual = residual.index_select(0, wanted)
        else:
            has_pieces, (*earlier, last) = model_input.has_pieces, self._layers
            for layer in earlier:
                residual, delta = layer(
                    residual, delta, self._rotation, attention, has_pieces=has_pieces
                )
            # Past the last keys and values only the rows that are sampled from are needed.
            residual, delta = last(
                residual, delta, self._rotation, attention, wanted=wanted, has_pieces=has_pieces
            )
        if model_input.is_for_cache:
            nothing: Tensor = residual.new_empty(0, sum(self._head.sizes))
            return nothing
        return self._head(self._norm(residual, delta, torch.float32)).float()

    def linears(self) -> Iterator[LinearsInUse]:
        """Give every linear layer, those that are multiplied at once together."""
        for index, layer in enumerate(self._layers):
            yield from layer.linears(f"model.layers.{index}")
        yield LinearsInUse(("lm_head",), self._head.sizes, self._head)


class NativeLlamaLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        self._num_heads: int = config.num_attention_heads
        self._scale: float = attention.scaling
        self._window: int | None = sliding_window(attention, config)
        self._attention_norm = AddNorm(layer.input_layernorm)
        self._head_norm = _head_norm(attention) if hasattr(attention, "q_norm") else None
        self._qkv = NativeLinears([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = NativeLinears([attention.o_proj])
        self._mlp_norm = AddNorm(layer.post_attention_layernorm)
        self._gate_up = NativeLinears([mlp.gate_proj, mlp.up_proj])
        self._down = NativeLinears([mlp.down_proj])
        # Attention of pieces is as exact as the products around it.
        self._attends_rounded = self._qkv.is_rounding and self._output.is_rounding
        # The activation gives what it gets, so both sides of it must want rounded rows.
        self._is_mlp_rounded = self._gate_up.takes_rounded and self._down.takes_rounded

    def forward(
        self,
        residual: Tensor,
        delta: Tensor | None,
        rotation: Tensor,
        attention: NativeStep,
        *,
        wanted: Tensor | None = None,
        has_pieces: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the residual [num_tokens, hidden], and what is to be added to it next.

        The residual that is given is changed in place; delta: what the layer before left to be
        added. rotation: the whole table. With wanted [n] int64, what follows attention is computed
        for these tokens only. has_pieces: whether all are in pieces of prompts.
        """
        of_qkv = _type_of(has_pieces and self._qkv.takes_rounded)
        of_output = _type_of(has_pieces and self._output.takes_rounded)
        attended = attention.attend_joined(
            self.index,
            self._qkv(self._attention_norm(residual, delta, of_qkv), has_pieces=has_pieces),
            rotation,
            num_heads=self._num_heads,
            head_norm=self._head_norm,
            scale=self._scale,
            window=self._window,
            rounded=of_output if self._attends_rounded else None,
        )
        if wanted is not None:
            residual = residual.index_select(0, wanted)
            attended = attended.index_select(0, wanted).to(torch.float32)
            has_pieces = False  # as many as are asked for
        added = self._output(attended, has_pieces=has_pieces)
        of_mlp = _type_of(has_pieces and self._is_mlp_rounded)
        inner = self._gate_up(self._mlp_norm(residual, added, of_mlp), has_pieces=has_pieces)
        return residual, self._down(rows.silu_mul(inner), has_pieces=has_pieces)

    def linears(self, name: str) -> Iterator[LinearsInUse]:
        """Give the layer's linear layers; name: its own in the model."""
        for joined, parts in zip(self.joined(), _NAMES, strict=True):
            yield joined.in_use(*(f"{name}.{part}" for part in parts))

    def in_one_call(self) -> LlamaLayer | None:
        """Give the layer as C++ runs several at once; None where it has not all of its weights."""
        qkv, output, gate_up, down = (each.native_weight() for each in self.joined())
        if qkv is None or output is None or gate_up is None or down is None:
            return None
        if self._attention_norm.eps != self._mlp_norm.eps:
            return None
        return LlamaLayer(
            attention_norm=self._attention_norm.weight,
            qkv=qkv,
            head_norm=self._head_norm,
            output=output,
            mlp_norm=self._mlp_norm.weight,
            gate_up=gate_up,
            down=down,
            eps=self._mlp_norm.eps,
            num_heads=self._num_heads,
            scale=self._scale,
            window=self._window,
        )

    def joined(self) -> tuple[NativeLinears, NativeLinears, NativeLinears, NativeLinears]:
        """Give its linear layers in the order in which they are multiplied by."""
        return self._qkv, self._output, self._gate_up, self._down


class LayersAtOnce:
    """All layers in one call, for as many rows as their weights multiply by ways that C++ has."""

    def __init__(self, layers: Sequence[NativeLlamaLayer]) -> None:
        self._layers = tuple(layers)
        told = [layer.in_one_call() for layer in layers]
        self._told = [each for each in told if each is not None]
        self._is_whole = bool(told) and len(self._told) == len(told)
        # Of the cache that steps bring, which is one and the same.
        self._of_cache: tuple[KVCache, llama_layers.LlamaLayers] | None = None

    @cached_property
    def _rows(self) -> RowsAtOnce:
        """Asked for by the first step, when ways are chosen."""
        found = RowsAtOnce(most_few=0)
        if self._is_whole:
            found = RowsAtOnce.of([each for layer in self._layers for each in layer.joined()])
        most = "any number" if found.has_many or found.most_few is None else found.most_few
        # Of steps with more of them each layer is several calls: a shape has no way in C++ there.
        log.info("rows_through_all_layers_in_one_call", at_most=most)
        return found

    def takes(self, num_rows: int) -> bool:
        """Whether so many rows can be run."""
        return self._rows.takes(num_rows)

    def run(
        self, residual: Tensor, rotation: Tensor, attention: NativeStep, num_layers: int
    ) -> None:
        """Add to the residual [num_tokens, hidden] in place what the first layers do."""
        if self._of_cache is None or self._of_cache[0] is not attention.cache:
            kept = [attention.cache.layer(layer.index).values for layer in self._layers]
            self._of_cache = (attention.cache, llama_layers.LlamaLayers(self._told, kept))
        self._of_cache[1].run(
            residual,
            rotation,
            attention.slots,
            attention.seen,
            num_layers=num_layers,
            are_many=self._rows.are_many(residual.shape[0]),
            has_tiles=self._rows.has_tiles,
        )


@dataclass(frozen=True, slots=True)
class RowsAtOnce:
    """How many rows go through all layers in one call, and by which ways of their weights."""

    most_few: int | None  # rows by the way of few; None: any number; 0: none
    has_many: bool = False  # whether more go by the way of many
    has_tiles: bool = False  # which then takes tile registers

    @classmethod
    def of(cls, linears: Sequence[NativeLinears]) -> RowsAtOnce:
        """Look at the ways that linear layers take."""
        ways = [each.ways_taken for each in linears]
        known = [each for each in ways if each is not None]
        if any(few != _FEW for few, _, _ in known):  # refused, or slower than PyTorch's
            return cls(most_few=0)
        starts = [start for _, _, start in known if start is not None]
        many = {way for _, way, _ in known}
        if len(known) == len(ways) and starts and many in ({_PANELS}, {_REGISTERS}):
            # Where some begin earlier, the others are as well off with the way of few.
            return cls(max(starts) - 1, has_many=True, has_tiles=many == {_REGISTERS})
        limits = [each.most_few_rows for each in linears]
        return cls(min((limit for limit in limits if limit is not None), default=None))

    def are_many(self, num_rows: int) -> bool:
        """Whether so many rows go by the way of many."""
        return self.most_few is not None and num_rows > self.most_few

    def takes(self, num_rows: int) -> bool:
        """Whether so many rows go in one call."""
        return self.has_many or not self.are_many(num_rows)


class AddNorm:
    """A norm's weight, in float32."""

    def __init__(self, norm: Any) -> None:
        self.weight: Tensor = norm.weight.detach().to(torch.float32)
        self.eps: float = norm.variance_epsilon

    def __call__(self, residual: Tensor, delta: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Add delta to the residual in place; return that normalised, in the dtype."""
        return rows.add_norm(residual, delta, self.weight, self.eps, dtype)


def _head_norm(attention: Any) -> HeadNorm:
    query, key = AddNorm(attention.q_norm), AddNorm(attention.k_norm)
    return HeadNorm(query.weight, key.weight, query.eps)


def _type_of(is_rounded: bool) -> torch.dtype:
    return torch.bfloat16 if is_rounded else torch.float32
