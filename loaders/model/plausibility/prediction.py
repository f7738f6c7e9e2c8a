"""Whether a model that was trained predicts any text better than chance.

Nothing is expected of a model whose weights are random, nor that it knows a certain language: of
code and many languages one must come out better than chance. Only a model that predicts none of
them is suspect.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = Path(__file__).with_name("texts.json")
NUM_TOKENS = 16  # of each text
# A text's mean loss, as a share of what guessing among all tokens alike would cost. The demo's
# branches come to at most 0.61 for the best text of each, wrong readings that break a model to
# 0.86 at least (2026-11; docs/trust.md).
CHANCE = 0.8
# A tokenizer that spells a language with so many bytes a piece was made of texts in it. Then it
# does not count that repetition is predicted, nor a script that falls apart into bytes, which
# repeats itself: wrong token ids leave that as it is.
HOME_BYTES = 3.5
FOREIGN_CHARACTERS = 1.2
# The largest singular value of centred embeddings, in units of what independent numbers would give.
# Random: 1.0; the demo: over 3. Few trained rows are needed for that.
TRAINED = 1.6
NUM_ROWS = 512
NUM_ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The beginning of one text."""

    name: str
    token_ids: tuple[int, ...]
    bytes_per_token: float
    characters_per_token: float


def check_prediction(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Suspicion]:
    """Have a trained model read the texts, code and English first: often that is all it takes."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    texts = choose_texts(tokenizer, vocab_size)
    if not texts or not is_trained(model):
        return []
    first, chance = _first_token(tokenizer, vocab_size), math.log(vocab_size)
    judged: list[tuple[float, str]] = []
    for part in (texts[:2], texts[2:]):  # on the second one only what is suspect spends time
        judged += _read(model, part, first)
        if any(loss < CHANCE * chance for loss, _ in judged):
            return []
    loss, best = min(judged)
    return [
        Suspicion(
            "predicts_nothing",
            f"the model's embeddings are trained, but it predicts none of {len(judged)} short"
            f" texts: a token of the best ({best}) costs {loss:.1f} nats, guessing costs"
            f" {chance:.1f}; weights, settings or tokenizer seem to be misread",
        )
    ]


def choose_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[EncodedText]:
    """Encode code, English and what else a model with this tokenizer may know.

    What is too short, or has tokens that the model does not, is left out.
    """
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    named = {"code": texts["code"], **texts["languages"], "repetition": texts["repetition"]}
    encoded = [_encode(tokenizer, name, text) for name, text in named.items()]
    code, english, *others, repetition = encoded
    if any(text.bytes_per_token >= HOME_BYTES for text in (code, english, *others)):
        others = [text for text in others if text.characters_per_token >= FOREIGN_CHARACTERS]
    else:
        others.append(repetition)
    return [
        text
        for text in (code, english, *others)
        if len(text.token_ids) == NUM_TOKENS and max(text.token_ids) < vocab_size
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> EncodedText:
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    num_tokens = max(1, len(token_ids))
    return EncodedText(
        name,
        tuple(token_ids[:NUM_TOKENS]),
        bytes_per_token=len(text.encode()) / num_tokens,
        characters_per_token=len(text) / num_tokens,
    )


def _first_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    token_id = tokenizer.bos_token_id
    return token_id if isinstance(token_id, int) and token_id < vocab_size else None


def _read(
    model: PreTrainedModel, texts: Sequence[EncodedText], first: int | None
) -> list[tuple[float, str]]:
    """Return each text's mean loss in nats, and its name; its first token counts after a BOS."""
    if not texts:
        return []
    start = () if first is None else (first,)
    token_ids = torch.tensor([[*start, *text.token_ids] for text in texts], device=model.device)
    run: Any = model
    logits: Tensor = run(input_ids=token_ids, use_cache=False).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), token_ids[:, 1:].to(logits.device), reduction="none"
    )
    # What is no number counts as the worst there is.
    losses: list[float] = loss.mean(dim=1).nan_to_num(nan=torch.inf).tolist()
    return [(value, text.name) for value, text in zip(losses, texts, strict=True)]


def is_trained(model: PreTrainedModel) -> bool:
    """Whether the embeddings have more in common than independent random numbers would."""
    embed: Any = model.get_input_embeddings()
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    num_rows = min(NUM_ROWS, vocab_size)
    ids = torch.arange(num_rows, device=model.device) * vocab_size // num_rows
    rows: Tensor = embed(ids).float().cpu()
    lengths = rows.norm(dim=1)
    if not bool(torch.isfinite(lengths).all()):
        return False
    # Of one length, less what they all have in common: neither is a sign of training.
    rows = torch.nn.functional.normalize(rows[lengths > 0], dim=1)
    if len(rows) < num_rows / 2:
        return False
    rows = torch.nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
    return _largest_singular_value(rows) > TRAINED * (1 + math.sqrt(num_rows / rows.shape[1]))


def _largest_singular_value(rows: Tensor) -> float:
    """Find it by power iteration, from below."""
    direction = rows[0]
    for _ in range(NUM_ITERATIONS):
        direction = torch.nn.functional.normalize(rows.t() @ (rows @ direction), dim=0)
    return float((rows @ direction).norm())
