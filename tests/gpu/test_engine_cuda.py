"""The engine's path on a GPU: kernels, graphs and overlap against float32 on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engine.config import KVDtype
from engine.sampling_params import SamplingParams
from tests.engine.tiny_models import (
    FUSED,
    UNFUSED,
    make_engine,
    make_model,
    make_prompts,
    run_engine,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_TOKENS = 24
# How far a token may be from the best, in standard deviations of the reference's logits: halves
# round, and two leading logits may nearly tie.
NEAR = 0.1
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": {"enforce_eager": True},
    "torch step kernels": {"enforce_eager": True, "step_kernels": "torch"},
    "torch step kernels in graphs": {"step_kernels": "torch"},
}
FAMILIES = ["llama", "mistral with a window", "qwen2", "qwen3, tied", "phi", "gpt-neox"]


@torch.inference_mode()
def furthest(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> float:
    """How far the worst token is from what the model prefers after those before it."""
    worst = 0.0
    for prompt, tokens in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        behind = (logits.max(dim=-1).values - taken) / logits.std(dim=-1)
        worst = max(worst, float(behind.max()))
    return worst


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_says_what_the_model_says_on_the_cpu(family: str, way: str, dtype: torch.dtype):
    model = make_model((FUSED | UNFUSED)[family]).to(dtype)
    reference = copy.deepcopy(model).float()
    prompts = make_prompts(1, 5, 16, 40, 70)
    engine = make_engine(model.cuda(), **WAYS[way])
    answers = run_engine(
        engine,
        [(prompt, SamplingParams(max_tokens=NUM_TOKENS, temperature=0)) for prompt in prompts],
    )
    bound = NEAR if dtype == torch.float16 else 8 * NEAR  # eight times as coarse
    assert furthest(reference, prompts, answers) <= bound


@pytest.mark.parametrize("way", ["graphs", "eager"])
def test_an_fp8_cache_stays_near(way: str):
    model = make_model(FUSED["llama"]).half()
    reference = copy.deepcopy(model).float()
    prompts = make_prompts(5, 40, 70)
    engine = make_engine(model.cuda(), kv_dtype=KVDtype.FP8, **WAYS[way])
    greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    answers = run_engine(engine, [(prompt, greedy) for prompt in prompts])
    assert furthest(reference, prompts, answers) <= 10 * NEAR


def test_sampled_tokens_are_the_same_replayed_and_eagerly():
    """Same kernels in the same shapes: to the bit."""
    requests = [
        (prompt, SamplingParams(max_tokens=NUM_TOKENS, temperature=1.0, seed=seed, top_p=0.9))
        for seed, prompt in enumerate(make_prompts(3, 20, 33, 8))
    ]
    model = make_model(FUSED["llama"]).half()
    replayed = run_engine(make_engine(copy.deepcopy(model).cuda()), requests)
    eager = run_engine(make_engine(model.cuda(), enforce_eager=True), requests)
    assert replayed == eager
