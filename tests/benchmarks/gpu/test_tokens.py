"""Each token is judged by the reference's logits after those before it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from benchmarks.gpu.tokens import Agreement, judge


def reference_that_prefers(logits: list[float]):
    """A model that gives the same logits everywhere."""

    def call(ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.tensor(logits).expand(1, ids.shape[1], -1))

    return call


def test_tokens_are_equal_near_or_wrong():
    reference = reference_that_prefers([1.0, 0.99, 0.0, -1.0])
    assert judge(reference, [[3, 3]], [[0, 0, 1, 2]]) == Agreement(equal=2, near=1, wrong=1)


def test_all_prompts_count():
    reference = reference_that_prefers([1.0, 0.0])
    assert judge(reference, [[1], [1, 1]], [[0], [0, 0]]) == Agreement(equal=3, near=0, wrong=0)
