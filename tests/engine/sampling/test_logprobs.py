from __future__ import annotations

import math

import pytest
import torch

from engine.sampling import logprobs
from engine.sampling.logprobs import (
    prompt_logprobs,
    prompt_logprobs_of,
    row_logprobs,
    to_prompt_logprobs,
    to_token_logprobs,
)
from tests.engine.sampling_rows import Row, params, pick, run


def test_they_are_those_of_log_softmax():
    logits = torch.randn(70, 5003) * 4
    tokens = torch.randint(5003, (70,))
    told = row_logprobs(logits, tokens, 20)
    wanted = torch.log_softmax(logits.double(), dim=-1)
    torch.testing.assert_close(
        told.picked.double(), wanted.gather(1, tokens.unsqueeze(1)).squeeze(1), atol=2e-6, rtol=1e-6
    )
    # Stable, because two of so many logits may be equal: then the lower id comes first.
    leading = wanted.sort(dim=-1, descending=True, stable=True)
    torch.testing.assert_close(told.top.double(), leading.values[:, :20], atol=2e-6, rtol=1e-6)
    assert torch.equal(told.top_ids, leading.indices[:, :20])


def test_a_token_far_too_unlikely_to_be_drawn_still_has_one():
    told = row_logprobs(torch.tensor([[0.0, -500.0]]), torch.tensor([1]), 2)
    assert told.picked.tolist() == [-500.0]
    assert told.top_ids.tolist() == [[0, 1]]


def test_of_equal_tokens_the_lower_id_comes_first_however_many_are_asked_for():
    logits = torch.tensor([[-1.0, 3.0, -1.0, 3.0, -1.0, 0.0]])
    for num in range(1, 7):
        told = row_logprobs(logits, torch.tensor([0]), num)
        assert told.top_ids.tolist() == [[1, 3, 5, 0, 2, 4][:num]]


def test_each_row_is_told_what_it_asked_for():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).log_softmax(0)
    asked = (2, None, 0, 3)
    rows = [Row(logits, params(temperature=0, logprobs=num)) for num in asked]
    for is_graph_safe in (False, True):
        sampled = run(rows, is_graph_safe=is_graph_safe)
        assert sampled.logprobs is not None
        told = to_token_logprobs(sampled.logprobs.cpu(), asked)
        assert told[1] is None
        assert [token and [top_id for top_id, _ in token.top] for token in told] == [
            [0, 1],
            None,
            [],
            [0, 1, 2],
        ]
        for token in (told[0], told[2], told[3]):
            assert token is not None
            assert token.logprob == pytest.approx(logits[0].item())
            assert all(value == pytest.approx(logits[i].item()) for i, value in token.top)


def test_padding_rows_are_not_told():
    told = row_logprobs(torch.randn(4, 9), torch.tensor([0, 1, 2, 3]), 1)
    assert len(to_token_logprobs(told, [1, None])) == 2


def test_they_are_of_the_models_own_distribution():
    logits = torch.tensor([1.0, 2.0, 3.0])
    setting = params(temperature=0.1, logit_bias={0: 50.0}, top_k=1, logprobs=1)
    sampled = run([Row(logits, setting)])
    assert pick([Row(logits, setting)]) == [0]
    assert sampled.logprobs is not None
    wanted = torch.log_softmax(logits, dim=0)
    assert sampled.logprobs.picked.tolist() == pytest.approx([wanted[0].item()])
    assert sampled.logprobs.top_ids.tolist() == [[2]]


def test_a_prompts_logprobs_do_not_depend_on_how_it_is_cut():
    logits = torch.randn(150, 301) * 3
    targets = torch.randint(301, (150,))
    whole = list(to_prompt_logprobs(prompt_logprobs(logits, targets, 4)))
    pieces = [
        token
        for part in (slice(0, 1), slice(1, 80), slice(80, 150))
        for token in to_prompt_logprobs(prompt_logprobs(logits[part], targets[part], 4))
    ]
    assert whole == pieces
    assert len(whole) == 150
    assert all(len(token.top) == 4 for token in whole)
    assert math.isclose(whole[3].logprob, logits[3].log_softmax(0)[targets[3]].item(), rel_tol=1e-5)


def test_a_prompts_logits_may_be_made_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    rows, weight = torch.randint(-4, 5, (50, 16)).float(), torch.randint(-4, 5, (301, 16)).float()
    targets = torch.randint(301, (50,))
    made: list[int] = []

    def head(some: torch.Tensor) -> torch.Tensor:
        made.append(len(some))
        return some @ weight.t()

    monkeypatch.setattr(logprobs, "_MAX_BLOCK_BYTES", 7 * 40 * 301)
    told = prompt_logprobs_of(rows, head, targets, 4, 301)
    assert made == [7] * 7 + [1]
    whole = prompt_logprobs(rows @ weight.t(), targets, 4)
    assert to_prompt_logprobs(told) == to_prompt_logprobs(whole)
    assert to_prompt_logprobs(prompt_logprobs_of(rows, head, targets[:0], 4, 301)) == ()


def test_a_prompt_of_one_token_has_none_to_tell_of():
    told = prompt_logprobs(torch.randn(1, 301), torch.empty(0, dtype=torch.int64), 4)
    assert to_prompt_logprobs(told) == ()
