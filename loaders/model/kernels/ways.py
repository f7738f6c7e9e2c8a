"""Kernels that can multiply in several ways, and which of them for how many rows.

What is fastest differs from processor to processor. Until somebody chooses, a fixed choice holds,
which each kernel brings along; whoever can measure looks at `ways_of_few` and `ways_of_many`, and
chooses by their names.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from os import environ
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

from native.masks import mask_of_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

Product: TypeAlias = Callable[["Tensor"], "Tensor"]
# Makes ready of the weight what a way needs, and gives the product.
MakeProduct: TypeAlias = Callable[[], Product]


@dataclass(frozen=True, slots=True)
class WayChoice:
    """Which way products take, by their number of rows."""

    few: str
    many: str  # that of prompts' pieces, too, however few rows are left of one
    many_from: int | None  # rows; None: whatever is no piece goes the way of few

    def as_tuple(self) -> tuple[str, str, int | None]:
        """Give it as whoever knows no such class takes it."""
        return self.few, self.many, self.many_from


class ManyWaysKernel(ABC):
    """A kernel with ways by name; each gives the same product but for its roundings."""

    # By name: makes the product of a kernel of this class ready.
    FEW: ClassVar[Mapping[str, Callable[[Any], Product]]]
    MANY: ClassVar[Mapping[str, Callable[[Any], Product]]]

    choice: WayChoice

    @abstractmethod
    def has_way(self, name: str) -> bool:
        """Whether this way is one here and now."""

    @property
    @abstractmethod
    def shape_key(self) -> str:
        """Name what the speed of its ways depends on, beside the machine."""

    @property
    def num_invariant_rows(self) -> int | None:
        """All that go the way of few; each of those ways sums a row by itself, in one order."""
        many_from = self.choice.many_from
        return None if many_from is None else many_from - 1

    def ways_of_few(self) -> dict[str, MakeProduct]:
        """Give the ways for a few rows, the first of which runs everywhere."""
        return self._named(self.FEW)

    def ways_of_many(self) -> dict[str, MakeProduct]:
        """Give the ways for many rows; what is made ready is kept as long as the product is."""
        return self._named(self.MANY)

    def _named(self, ways: Mapping[str, Callable[[Any], Product]]) -> dict[str, MakeProduct]:
        return {name: partial(make, self) for name, make in ways.items() if self.has_way(name)}

    def choose(self, choice: WayChoice) -> None:
        """Take these ways from now on."""
        if not (choice.few in self.FEW and choice.many in self.MANY):
            raise ValueError(f"{type(self).__name__} has no such ways: {choice}")
        self.choice = choice

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        choice = self.choice
        if choice.many_from is None or x.shape[0] < choice.many_from:
            return self.FEW[choice.few](self)(x)
        return self.MANY[choice.many](self)(x)

    def product_of_many(self) -> Product:
        """Give the product by the way of many rows."""
        return self.MANY[self.choice.many](self)


class Bfloat16(enum.Enum):
    """How this CPU multiplies matrices in bfloat16."""

    OWN = "with instructions of its own"
    MADE_UP = "oneDNN makes it up of others"  # as fast as float32, or slower
    SLOW = "one number at a time"  # 64 rows of 3072x576: 430 ms, in float32 3 (one core, 2026-11)


@cache
def bfloat16_products() -> Bfloat16:
    """Say how products in bfloat16 are made here, without what oneDNN is told to leave out."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Bfloat16.SLOW
    has = torch.cpu.get_capabilities()
    is_own = has.get("avx512_bf16") or has.get("amx_bf16")
    return Bfloat16.OWN if is_own and mask_of_bfloat16(environ) is None else Bfloat16.MADE_UP


def has_dtype_way(dtype: torch.dtype) -> bool:
    """Whether dense products in a dtype may be the fastest: bfloat16 or float32."""
    slower = Bfloat16.SLOW if dtype == torch.bfloat16 else Bfloat16.OWN
    return bfloat16_products() is not slower
