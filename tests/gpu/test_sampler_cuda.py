"""Sampling on a CUDA device: captured in a graph, and the same alone as among others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.sampling.row_plan import SamplingPlan, make_plan, plan_key
from engine.sampling.sampler import sample
from engine.sampling.state import SamplingState
from engine.scheduling.batch import SlotStart
from tests.engine.sampling_rows import RowMaker, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("vocab_size", [203, 997, 50257])
def test_a_row_does_not_depend_on_the_rows_beside_it(vocab_size: int):
    device = torch.device("cuda:0")
    maker = RowMaker(seed=1, vocab_size=vocab_size)
    rows = [maker.row() for _ in range(64)]
    together = run(rows, is_graph_safe=True, device=device).tokens.tolist()
    alone = [run([row], is_graph_safe=True, device=device).tokens.item() for row in rows]
    assert together == alone


def test_a_captured_graph_samples_what_the_plain_call_does():
    device = torch.device("cuda:0")
    maker = RowMaker(seed=2, vocab_size=5003)
    rows = [replace(maker.row(), extras=None) for _ in range(16)]
    state = SamplingState(max_num_seqs=16, vocab_size=5003, device=device)
    for slot, row in enumerate(rows):
        state.start(SlotStart(slot, slot, row.params, row.seed, row.prompt, row.output, ()))
    positions = [row.position for row in rows]
    plan = SamplingPlan(
        plan_key(state, range(16), [0] * 16),
        torch.arange(16, device=device),
        torch.tensor(positions, device=device),
    )
    logits = torch.stack([row.logits for row in rows]).to(device)
    buffer = logits.clone()
    sample(buffer, plan, state)  # warm up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampled = sample(buffer, plan, state)
    for _ in range(5):
        logits = logits.roll(1, dims=-1)
        buffer.copy_(logits)
        graph.replay()
        wanted = sample(logits.clone(), make_plan(state, range(16), positions), state)
        assert torch.equal(sampled.tokens, wanted.tokens)
        assert sampled.logprobs is not None
        assert wanted.logprobs is not None
        assert torch.equal(sampled.logprobs.picked, wanted.logprobs.picked)
