"""Measures how well a model predicts the demo's text, and remembers what was measured.

A build gives the same bits everywhere (see `quantize`), and measuring eight models takes a minute
of two cores, so the figures are recorded with the package under the sha256 of the weights they
belong to. Weights or a text that no record knows are measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from loaders.load import load
from loaders.repository.manifest import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerFast

    from loaders.demo.source import SourceModel

EVALUATION_TEXT = Path(__file__).with_name("evaluation_text.txt")
RECORD = Path(__file__).with_name("perplexities.json")

# Logits of this many positions exist at once; each takes 200 kB.
_POSITIONS_AT_ONCE = 256


def measure_checkpoint(folder: Path) -> float:
    """Return the perplexity of a checkpoint, dequantised and multiplied in fp32."""
    loaded = load(str(folder), device="cpu", backend="reference", local_files_only=True)
    return _measure(loaded.model, loaded.tokenizer)


def measure_source(source: SourceModel) -> float:
    """Return the perplexity of what the demo is rounded from, in fp32."""
    model = LlamaForCausalLM(source.config)
    model.load_state_dict(dict(source.weights), strict=False)  # the head is tied, so not among them
    model.tie_weights()
    return _measure(model, source.tokenizer)


def _measure(model: Any, tokenizer: PreTrainedTokenizerFast) -> float:
    """Read the whole text in one piece and exponentiate the mean loss of each next token."""
    text = EVALUATION_TEXT.read_text(encoding="utf-8")
    token_ids = torch.tensor([tokenizer(text)["input_ids"]])
    targets = token_ids[0, 1:]
    loss = 0.0
    with torch.inference_mode():
        hidden = model.model(token_ids, use_cache=False).last_hidden_state[0, :-1]
        for start in range(0, len(targets), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            logits = model.lm_head(hidden[part])
            loss += float(functional.cross_entropy(logits, targets[part], reduction="sum"))
    return math.exp(loss / len(targets))


def recorded_perplexity(weights: Path) -> float | None:
    """Return what was measured for exactly these weights and this text, None if nothing was."""
    record = json.loads(RECORD.read_text())
    if record["text_sha256"] != sha256_of_file(EVALUATION_TEXT):
        return None
    perplexity: float | None = record["perplexity_of_sha256"].get(sha256_of_file(weights))
    return perplexity


def write_record(perplexities: Mapping[str, float]) -> None:
    """Replace the record; perplexities: by the sha256 of the weights."""
    record = {
        "text_sha256": sha256_of_file(EVALUATION_TEXT),
        "perplexity_of_sha256": {digest: round(value, 4) for digest, value in perplexities.items()},
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
