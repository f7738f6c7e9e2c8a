"""Part "tokens": a small act-order model on the engine says what its files say.

What the files say is told by a stock Transformers model on the CPU in float32, with weights that
the tests' own reader unpacked: no code of the loaders or the engine. Half precision may pick
another token where the two leading logits all but tie, so every token is judged by the reference's
logits after the very tokens before it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.streams import greedy, run_mixed, run_to_the_end
from engine.config import EngineConfig
from engine.core import Engine
from engine.execution.path import resolve_path
from loaders.load import load
from tests.dequantize import dequantized_model
from tests.greedy import MAX_LOGIT_ERROR
from tests.models import VOCAB_SIZE, tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from benchmarks.gpu.context import Context

NUM_PROMPTS, DRY_NUM_PROMPTS = 24, 6
NUM_TOKENS = 24
# Either of two logits may be off by so much of their spread.
NEAR = 2 * MAX_LOGIT_ERROR


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a model's tokens compare with the reference's logits."""

    equal: int  # the reference's own choice
    near: int  # not that, but all but tied with it
    wrong: int

    def __str__(self) -> str:
        return f"{self.equal} equal, {self.near} near ties, {self.wrong} wrong"


# How the engine may run the model; all must say what the files say. The first is what users get.
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {"enforce_eager": False},
    "eager": {"enforce_eager": True},
    "torch step kernels": {"enforce_eager": True, "step_kernels": "torch"},
}
MIXED_STEPS, DRY_MIXED_STEPS = 200, 24


def run(context: Context) -> None:
    """Compare every way; raises `CheckFailedError` where a token is wrong."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-tokens-") as name:
        folder = write_gptq_checkpoint(
            Path(name, "model"), tiny_llama(), desc_act=True, tokenizer=tiny_tokenizer()
        )
        reference = dequantized_model(folder)
        prompts = make_prompts(DRY_NUM_PROMPTS if context.is_dry else NUM_PROMPTS)
        for way, options in WAYS.items():
            context.tell(way)
            engine, backend = make_engine(folder, context, **options)
            answers = run_to_the_end(engine, prompts, greedy(NUM_TOKENS))
            found[way] = _found(backend, judge(reference, prompts, answers))
            context.save(**found)
        for way, is_overlapped in (("mixed, overlapped", True), ("mixed, one by one", False)):
            context.tell(way)
            engine, backend = make_engine(folder, context, is_overlapped=is_overlapped)
            num_steps = DRY_MIXED_STEPS if context.is_dry else MIXED_STEPS
            asked, answers = run_mixed(engine, prompts, greedy(NUM_TOKENS), num_steps)
            found[way] = _found(backend, judge(reference, asked, answers))
            context.save(**found)
    context.save(summary="; ".join(f"{way}: {found[way]['agreement']}" for way in found))
    if wrong := sum(way["wrong"] for way in found.values()):
        raise CheckFailedError(f"{wrong} tokens are not what the checkpoint's weights give")


def _found(backend: str, agreement: Agreement) -> dict[str, Any]:
    return {"backend": backend, "agreement": str(agreement), "wrong": agreement.wrong}


def make_prompts(count: int) -> list[list[int]]:
    """Make random prompts of many lengths."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(5, VOCAB_SIZE, (5 + 7 * number,), generator=generator).tolist()
        for number in range(count)
    ]


def make_engine(
    folder: Path, context: Context, *, is_overlapped: bool | None = None, **options: Any
) -> tuple[Engine, str]:
    """Load the model onto an engine; return it and the backends in use.

    is_overlapped: whether a step is launched before the one before it was read; None is the
    device's own way.
    """
    loaded = load(str(folder), device=context.device, cache_dir=folder.parent)
    config = EngineConfig(
        max_num_seqs=NUM_PROMPTS,
        max_num_batched_tokens=256,  # long prompts come in chunks
        max_model_len=512,
        num_blocks=512,
        **options,
    )
    path = resolve_path(torch.device(context.device), config)
    if is_overlapped is not None:
        path = replace(path, is_overlapped=is_overlapped)
    return Engine(loaded.model, config, path=path), loaded.provenance.backend


@torch.inference_mode()
def judge(reference: Any, prompts: list[list[int]], answers: list[list[int]]) -> Agreement:
    """Compare each token with the reference's logits after those before it."""
    equal = near = wrong = 0
    for prompt, tokens in zip(prompts, answers, strict=True):
        logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        best = logits.max(dim=-1).values
        taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        behind = (best - taken) / logits.std(dim=-1)
        equal += int((behind == 0).sum())
        wrong += int((behind > NEAR).sum())
        near += int(((behind > 0) & (behind <= NEAR)).sum())
    return Agreement(equal, near, wrong)
