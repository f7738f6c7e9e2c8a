"""Small models that run by kernels in C++, or by what stands for them in PyTorch."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from engine.execution import cpu_kernels
from engine.outputs import TokenOutput
from engine.request import SequenceRequest
from native import int4, library
from native.int4 import Int4Weight
from tests.engine.tiny_models import FUSED, VOCAB_SIZE, make_model
from tests.native import reference
from tests.native.weights import packed_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from engine.core import Engine
    from engine.outputs import TokenLogprobs
    from engine.sampling_params import SamplingParams

    Product = Callable[[Tensor], Tensor]
    MakeProduct = Callable[[], Product]

WAYS = ("in PyTorch", "compiled")
# How weights multiply many rows: unpacked as a whole by PyTorch, or by blocks in C++.
TILES, PANELS = "tiles", "native panels"
MOST_FEW_ROWS = 24
_ids = itertools.count()


def use(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Have engines that are made compute by these kernels; skips where there are none."""
    if way == "in PyTorch":
        reference.use_in_place(monkeypatch)
        monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    elif (reason := library.why_not()) is not None:
        pytest.skip(reason)


def widened(config: PretrainedConfig) -> PretrainedConfig:
    """Give a tiny model heads of a width that the kernels are for."""
    config = copy.deepcopy(config)
    config.head_dim = 64
    return config


# Factors of longrope are as many as half a head is wide.
WIDE = {name: widened(each) for name, each in FUSED.items() if "longrope" not in name}


class BlockLinear(nn.Module):
    """A linear weight in int4 blocks, multiplied by few rows and by many in ways of their own.

    An engine takes those of the kernels, which tests may have stood in for. It has the one way of
    many beside PyTorch's that it is told.
    """

    input_permutation: Tensor | None = None
    output_permutation = None
    unit_roundoff = 2**-8

    def __init__(
        self,
        weight: Int4Weight,
        in_features: int,
        *,
        most_few_rows: int = MOST_FEW_ROWS,
        many: str = PANELS,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, weight.out_features
        self._weight = weight
        self._tiles = reference.unpack(weight)
        self.bias = weight.bias
        self.input_permutation = weight.input_permutation
        self.most_few_rows, self.many = most_few_rows, many
        self.choose_ways(few="packed", many=TILES, many_from=most_few_rows + 1)

    def native_weight(self) -> Int4Weight:
        return self._weight

    @property
    def kind(self) -> str:
        return f"blocks {self._many}"

    @property
    def shape_key(self) -> str:
        return f"blocks {self.in_features}x{self.out_features}"

    @property
    def num_invariant_rows(self) -> int | None:
        return None if self._many_from is None else self._many_from - 1

    @property
    def ways_taken(self) -> tuple[str, str, int | None]:
        return self._few, self._many, self._many_from

    def ways_of_few(self) -> dict[str, MakeProduct]:
        return {
            "packed": lambda: partial(reference.multiply, self._weight),
            "native": lambda: partial(int4.multiply, self._weight),
        }

    def ways_of_many(self) -> dict[str, MakeProduct]:
        ways: dict[str, MakeProduct] = {
            TILES: lambda: self._multiply_by_tiles,
            PANELS: lambda: partial(int4.multiply_many, self._weight),
        }
        return {name: ways[name] for name in dict.fromkeys((TILES, self.many))}

    def choose_ways(self, *, few: str, many: str, many_from: int | None) -> None:
        self._few, self._many, self._many_from = few, many, many_from

    def matmul(self, x: Tensor) -> Tensor:
        most = self.num_invariant_rows
        if most is not None and x.shape[0] > most:
            return self.product_of_many()(x)
        return self.ways_of_few()[self._few]()(x)

    def product_of_many(self) -> Product:
        return self.ways_of_many()[self._many]()

    def _multiply_by_tiles(self, x: Tensor) -> Tensor:
        product = (x.bfloat16() @ self._tiles)[:, : self.out_features]
        return self._with_bias(product.to(x.dtype))

    def _with_bias(self, out: Tensor) -> Tensor:
        return out.clone() if self.bias is None else out + self.bias.to(out.dtype)

    def fuse_with(self, others: Sequence[Any]) -> BlockLinear | None:
        if not all(isinstance(other, BlockLinear) for other in others):
            return None
        parts = [self._weight, *(other._weight for other in others)]
        if any(part.out_features % reference.BLOCK for part in parts[:-1]):
            return None
        biases = [part.bias for part in parts if part.bias is not None]
        joined = Int4Weight(
            packed=torch.cat([part.packed for part in parts]),
            scales_and_minima=torch.cat([part.scales_and_minima for part in parts], dim=1),
            out_features=sum(part.out_features for part in parts),
            bias=torch.cat(biases) if biases else None,
            input_permutation=self._weight.input_permutation,
        )
        return BlockLinear(
            joined, self.in_features, most_few_rows=self.most_few_rows, many=self.many
        )


def make_packed(
    config: PretrainedConfig,
    *,
    seed: int = 0,
    most_few_rows: int = MOST_FEW_ROWS,
    many: str = PANELS,
) -> PreTrainedModel:
    """Make a model all of whose linear layers, its head too, are in int4 blocks.

    most_few_rows: more go the way of many; many: which that is, where kernels in C++ are taken.
    """
    model = make_model(config, seed=seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            bias = None if module.bias is None else module.bias.detach()
            weight = packed_weight(module.weight.detach(), bias)
            layer = BlockLinear(weight, module.in_features, most_few_rows=most_few_rows, many=many)
            setattr(model.get_submodule(parent), child, layer)
    return model


SMALL = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


@dataclass
class Answer:
    """What one sequence got."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


def answers(
    engine: Engine, requests: Sequence[tuple[Sequence[int], SamplingParams]], *, every: int = 0
) -> list[Answer]:
    """Run requests together, one more every so many steps; 0: all at once."""
    waiting = [
        SequenceRequest(sequence_id=next(_ids), prompt_token_ids=tuple(prompt), params=params)
        for prompt, params in requests
    ]
    found = {request.sequence_id: Answer() for request in waiting}
    for step in itertools.count():
        while waiting and (not every or step % every == 0):
            engine.add(waiting.pop(0))
            if every:
                break
        if not engine.has_work and not waiting:
            break
        for output in engine.step():
            if isinstance(output, TokenOutput):
                found[output.sequence_id].tokens.append(output.token_id)
                found[output.sequence_id].logprobs.append(output.logprobs)
    engine.scheduler.check()
    return list(found.values())


def check_alike(got: Answer, expected: Answer, *, max_error: float) -> int:
    """Compare answers until they part, which they may do where two logprobs nearly tie.

    Logprobs must be told of each. max_error: how far one may be off. Returns how many tokens agree.
    """
    assert len(got.tokens) == len(expected.tokens)
    pairs = zip(got.tokens, expected.tokens, got.logprobs, expected.logprobs, strict=True)
    for number, (mine, theirs, told, wanted) in enumerate(pairs):
        assert told is not None
        assert wanted is not None
        if mine != theirs:
            (_, first), (_, second) = wanted.top[:2]
            assert first - second < 2 * max_error, (number, wanted.top)
            return number
        assert abs(told.logprob - wanted.logprob) < max_error, number
    return len(got.tokens)
