"""The engine's one law: what a sequence gets does not depend on how it is run.

Here against Transformers' `generate`, and against the same sequence run alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from engine.execution.decoder import TransformersDecoder
from engine.execution.model_runner import ModelRunner
from engine.layers.llama import LlamaDecoder
from engine.outputs import SequenceFailure, SequenceStarted, TokenOutput
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import request
from tests.engine.tiny_models import (
    FUSED,
    UNFUSED,
    RowByRowLinear,
    generate,
    make_engine,
    make_model,
    make_prompts,
    make_row_by_row,
    run_engine,
)

if TYPE_CHECKING:
    from engine.core import Engine

GREEDY = SamplingParams(max_tokens=24, temperature=0)
# Around the borders of blocks, and longer than the windows.
LENGTHS = (1, 5, 15, 16, 17, 40)

# Twelve settings and lengths; a mate of each kind for every other.
MIXED = [
    (1, SamplingParams(max_tokens=30, temperature=0)),
    (3, SamplingParams(max_tokens=9, temperature=0)),
    (16, SamplingParams(max_tokens=31, temperature=0)),
    (50, SamplingParams(max_tokens=12, temperature=0)),
    (7, SamplingParams(max_tokens=20, temperature=1.0, seed=1)),
    (33, SamplingParams(max_tokens=25, temperature=0.7, seed=2)),
    (2, SamplingParams(max_tokens=17, temperature=1.5, top_k=5, seed=3)),
    (64, SamplingParams(max_tokens=8, temperature=1.0, top_k=50, seed=4)),
    (11, SamplingParams(max_tokens=28, temperature=1.0, top_p=0.9, seed=5)),
    (20, SamplingParams(max_tokens=3, temperature=2.0, top_p=0.5, seed=6)),
    (9, SamplingParams(max_tokens=22, temperature=0.9, top_k=40, top_p=0.95, seed=7)),
    (30, SamplingParams(max_tokens=1, temperature=1.0, seed=8)),
]


def decoder_of(engine: Engine) -> object:
    assert isinstance(engine._runner, ModelRunner)
    return engine._runner._decoder


def mixed_requests() -> list[tuple[list[int], SamplingParams]]:
    prompts = make_prompts(*(length for length, _ in MIXED))
    return list(zip(prompts, (params for _, params in MIXED), strict=True))


@pytest.mark.parametrize("family", [*FUSED, *UNFUSED])
def test_greedy_tokens_are_those_of_generate(family: str):
    model = make_model((FUSED | UNFUSED)[family])
    prompts = make_prompts(*LENGTHS)
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]

    engine = make_engine(model)
    expected_decoder = LlamaDecoder if family in FUSED else TransformersDecoder
    assert isinstance(decoder_of(engine), expected_decoder)
    assert run_engine(engine, [(prompt, GREEDY) for prompt in prompts]) == wanted


def test_an_answer_can_be_as_long_as_the_context():
    model = make_model(FUSED["llama"])
    (prompt,) = make_prompts(20)
    wanted = generate(model, prompt, 108)
    params = SamplingParams(max_tokens=500, temperature=0)
    assert run_engine(make_engine(model), [(prompt, params)]) == [wanted]


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "qwen3, tied", "phi"])
def test_twelve_sequences_together_give_what_each_gives_alone(family: str):
    """With ordinary matrix products: their last bits may differ, which no leading logit notices."""
    config = (FUSED | UNFUSED)[family]
    requests = mixed_requests()
    alone = [run_engine(make_engine(make_model(config)), [request])[0] for request in requests]
    assert run_engine(make_engine(make_model(config)), requests) == alone
    assert [len(tokens) for tokens in alone] == [params.max_tokens for _, params in MIXED]


@pytest.mark.parametrize("family", ["llama", "qwen2 with windows in some layers", "gpt-neox"])
def test_logits_are_the_same_to_the_last_bit_in_the_batch_invariant_mode(family: str):
    """Linear layers multiply row by row, so every part computes a row alike in any batch."""
    config = (FUSED | UNFUSED)[family]
    requests = mixed_requests()
    alone: Counter[bytes] = Counter()
    for each in requests:
        alone += _logits_of(_run_batch_invariant(config, [each]))
    head = _run_batch_invariant(config, requests)
    assert max(len(rows) for rows in head.rows_seen) >= 10  # they did share their steps
    assert _logits_of(head) == alone


def _run_batch_invariant(config: object, requests: list) -> RowByRowLinear:  # type: ignore[type-arg]
    model = make_row_by_row(make_model(config))  # type: ignore[arg-type]
    head = model.get_output_embeddings()
    assert isinstance(head, RowByRowLinear)
    engine = make_engine(model, is_batch_invariant=True)
    head.rows_seen.clear()
    run_engine(engine, requests)
    return head


def _logits_of(head: RowByRowLinear) -> Counter[bytes]:
    return Counter(row.numpy().tobytes() for rows in head.rows_seen for row in rows)


def test_a_seed_gives_the_same_answer_again_and_another_seed_another():
    engine = make_engine(make_model(FUSED["llama"]))
    (prompt,) = make_prompts(10)
    seeds = [3, 4, 3]
    params = [SamplingParams(max_tokens=30, temperature=1.5, seed=seed) for seed in seeds]
    first, other, again = run_engine(engine, [(prompt, p) for p in params])
    assert first == again != other


def test_sequences_that_come_and_go_do_not_disturb_each_other():
    """One joins at every step; one in three is aborted after a few."""
    model = make_model(FUSED["llama"])
    prompts = make_prompts(*range(1, 31))
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]
    engine = make_engine(model, max_num_seqs=7)
    sequences = []
    for index, prompt in enumerate(prompts):
        sequences.append(engine.add(request(index, prompt, GREEDY)))
        engine.step()
        if index % 3 == 2:
            engine.abort(sequences[index - 2].sequence_id)
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    for sequence, tokens in zip(sequences, wanted, strict=True):
        got = sequence.output_token_ids
        assert got == tokens[: len(got)]
    assert sum(len(s.output_token_ids) == GREEDY.max_tokens for s in sequences) >= 20


class Spoiled(nn.Module):
    """An embedding that gives NaN for one token."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        weight = embedding.weight
        assert isinstance(weight, torch.Tensor)
        self.weight = nn.Parameter(weight.detach().clone())
        self.weight.data[300] = float("nan")


def test_bad_logits_fail_their_sequence_and_leave_its_mates_bit_identical():
    """Its blocks are used again afterwards, and nothing of the NaN is left in them."""
    model = make_model(FUSED["llama"])
    good, later = make_prompts(20, 17)
    good, later = [t % 300 for t in good], [t % 300 for t in later]
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in (good, later)]
    assert 300 not in wanted[0] + wanted[1]

    inner = model.model
    inner.embed_tokens = Spoiled(inner.embed_tokens)
    engine = make_engine(model, num_blocks=9)
    bad = engine.add(request(0, [300] * 60, GREEDY))  # 6 of 9 blocks
    mates = [engine.add(request(i, prompt, GREEDY)) for i, prompt in enumerate((good, later), 1)]
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    failures = [output for output in outputs if isinstance(output, SequenceFailure)]
    assert [failure.sequence_id for failure in failures] == [bad.sequence_id]
    assert all(isinstance(o, SequenceStarted | TokenOutput) for o in outputs if o not in failures)
    assert [mate.output_token_ids for mate in mates] == wanted
    engine.scheduler.check()
