"""Part "tokens": a small act-order model on the engine says what its files say.

What the files say is told by a stock Transformers model on the CPU in float32, with weights that
the tests' own reader unpacked: no code of the loaders or the engine. Half precision may pick
another token where the two leading logits all but tie, so every token is judged by the reference's
logits after the very tokens before it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.streams import greedy, run_to_the_end
from engine.config import EngineConfig
from engine.core import Engine
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


def run(context: Context) -> None:
    """Compare static and eager steps; raises `CheckFailedError` where a token is wrong."""
    found: dict[str, Any] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="gpu-tokens-") as name:
        folder = write_gptq_checkpoint(
            Path(name, "model"), tiny_llama(), desc_act=True, tokenizer=tiny_tokenizer()
        )
        reference = dequantized_model(folder)
        prompts = make_prompts(DRY_NUM_PROMPTS if context.is_dry else NUM_PROMPTS)
        for way, is_eager in (("static", False), ("eager", True)):
            context.tell(f"{way} steps")
            answers, backend = answer(folder, context.device, prompts, is_eager=is_eager)
            agreement = judge(reference, prompts, answers)
            wrong += agreement.wrong
            found[way] = {"backend": backend, "agreement": str(agreement), "wrong": agreement.wrong}
            context.save(**found)
    context.save(summary="; ".join(f"{way}: {found[way]['agreement']}" for way in found))
    if wrong:
        raise CheckFailedError(f"{wrong} tokens are not what the checkpoint's weights give")


def make_prompts(count: int) -> list[list[int]]:
    """Make random prompts of many lengths."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(5, VOCAB_SIZE, (5 + 7 * number,), generator=generator).tolist()
        for number in range(count)
    ]


def answer(
    folder: Path, device: str, prompts: list[list[int]], *, is_eager: bool
) -> tuple[list[list[int]], str]:
    """Let the engine answer all prompts together; return tokens and the backends in use."""
    loaded = load(str(folder), device=device, cache_dir=folder.parent)
    config = EngineConfig(
        max_num_seqs=NUM_PROMPTS,
        max_num_batched_tokens=256,  # long prompts come in chunks
        max_model_len=512,
        num_blocks=512,
        enforce_eager=is_eager,
    )
    engine = Engine(loaded.model, config)
    return run_to_the_end(engine, prompts, greedy(NUM_TOKENS)), loaded.provenance.backend


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
