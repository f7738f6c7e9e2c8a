"""What a stock model says greedily, and whether an answer rounded otherwise may be right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

ENDS = (1, 3)  # the tiny models' `</s>` and `<|im_end|>`
# Of `tests/loaders`: how far a logit may be off on the fast kernels, relative to their spread.
MAX_LOGIT_ERROR = 0.06


def answer_of(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, num_tokens: int) -> str:
    """Let a stock model continue a prompt."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=list(ENDS),
        pad_token_id=0,
    )
    return _decode(tokenizer, answer[0, ids.shape[1] :])


@torch.inference_mode()
def may_say(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, text: str, num_tokens: int
) -> bool:
    """Whether a text is what a model says, tokens that all but tie with the best allowed."""
    prompt_ids = tokenizer(prompt).input_ids
    ways: list[list[int]] = [[]]
    for _ in range(num_tokens):
        further = [way for way in ways if way and way[-1] in ENDS]
        for way in ways:
            if way not in further:
                further += [[*way, token] for token in _near_best(model, prompt_ids + way)]
        # A character that is not complete yet is shown as a replacement.
        ways = [w for w in further if text.startswith(_decode(tokenizer, w).rstrip("\ufffd"))]
    return any(_decode(tokenizer, way) == text for way in ways)


def _near_best(model: Any, ids: list[int]) -> list[int]:
    logits = model(torch.tensor([ids])).logits[0, -1]
    near = (logits >= logits.max() - 2 * MAX_LOGIT_ERROR * logits.std()).nonzero()[:, 0]
    return [int(token) for token in near]


def _decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
