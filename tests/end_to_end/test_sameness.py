"""The same question gets the same answer, whether its beginning was in the prefix cache or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.config import EngineConfig
from engine.core import Engine
from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from loaders.demo import DEMO_DEFAULT_BRANCH
from loaders.load import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.demo import DemoRepositories

NUM_TOKENS = 24
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)
QUESTIONS = (
    "Write a Python function that reverses a string.",
    "Explain in a few sentences why the sky is blue, and why it turns red in the evening.",
    "Write a Python function that reverses the words of a sentence. " * 8,
)


def answer(
    engine: Engine, number: int, prompt: Sequence[int], salt: str, prompt_logprobs: int | None
) -> tuple[list[int], int]:
    """Answer greedily; return the tokens and how many of the prompt's were cached."""
    params = SamplingParams(
        max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, prompt_logprobs=prompt_logprobs
    )
    engine.add(
        SequenceRequest(
            sequence_id=number, prompt_token_ids=tuple(prompt), params=params, cache_salt=salt
        )
    )
    tokens: list[int] = []
    num_cached = 0
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, TokenOutput):
                tokens.append(output.token_id)
            elif isinstance(output, SequenceStarted):
                num_cached = output.num_cached_tokens
    return tokens, num_cached


@pytest.mark.slow
@pytest.mark.parametrize("branch", [DEMO_DEFAULT_BRANCH, "main"])
def test_a_question_and_what_follows_it_are_answered_alike_with_and_without_a_hit(
    demo: DemoRepositories, branch: str
):
    loaded = load(f"{demo.gptq_repo}:{branch}", device="cpu", cache_dir=demo.cache_dir)
    sizes = EngineConfig(
        max_num_seqs=2, max_num_batched_tokens=128, max_model_len=512, num_blocks=200
    )
    engine, tokenizer = Engine(loaded.model, sizes), loaded.tokenizer
    for number, question in enumerate(QUESTIONS):
        text = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(text)
        base, salt = 10 * number, f"asked {number}"
        cold, found = answer(engine, base, prompt, salt, None)
        hit, found_again = answer(engine, base + 1, prompt, salt, None)
        told, _ = answer(engine, base + 2, prompt, salt, 0)
        assert (hit, told) == (cold, cold)
        assert found == 0 < found_again
        following = [*prompt, *cold, *tokenizer.encode("Go on, please.")]
        second, found = answer(engine, base + 3, following, salt, None)
        assert second == answer(engine, base + 4, following, f"elsewhere {number}", None)[0]
        assert found > 0
