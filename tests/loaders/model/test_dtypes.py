"""What settling a model's dtypes asks of products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from loaders.model.dtypes import settle_on_cuda
from tests.models import tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterator

PRODUCTS = torch.backends.cuda.matmul
SETTINGS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@pytest.fixture(autouse=True)
def as_pytorch_has_it() -> Iterator[None]:
    """Its default before, and what was there put back afterwards."""
    before = {name: getattr(PRODUCTS, name) for name in SETTINGS}
    for name in SETTINGS:
        setattr(PRODUCTS, name, True)
    yield
    for name, value in before.items():
        setattr(PRODUCTS, name, value)


def test_products_on_cuda_are_summed_in_float32():
    settle_on_cuda(tiny_llama(hidden_size=64, intermediate_size=64), torch.float16)
    assert [getattr(PRODUCTS, name) for name in SETTINGS] == [False, False]
