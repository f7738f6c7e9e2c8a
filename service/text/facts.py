"""What is known of a variant when its chat template is chosen.

Names, numbers, pieces and the model card. Gathers and judges nothing; `families` draws the
conclusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from loaders.catalogue.model_card import ModelCard, parse_model_card
from loaders.checkpoint.own_places import read_model_card

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

MAX_CARD_BYTES = 1024**2


class ModelConfig(Protocol):
    """The part of a Transformers config that is read here."""

    @property
    def model_type(self) -> str:
        """The architecture's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What template selection may look at."""

    repo: str  # as its users call it: "owner/name", or the name of a local folder
    model_type: str  # the config's: "llama", "qwen2", …
    vocab_size: int | None = None
    num_hidden_layers: int | None = None
    pieces: frozenset[str] = frozenset()  # what the tokenizer has beside its ordinary vocabulary
    model_card: ModelCard | None = None  # None without a README.md of its own


def read_facts(
    folder: Path, repo: str, config: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> VariantFacts:
    """Gather the facts of a variant whose small files lie in `folder`."""
    return VariantFacts(
        repo=repo,
        model_type=config.model_type,
        vocab_size=_number(config, "vocab_size"),
        num_hidden_layers=_number(config, "num_hidden_layers"),
        pieces=frozenset(tokenizer.added_tokens_encoder),
        model_card=_read_card(folder / "README.md"),
    )


def _number(config: ModelConfig, name: str) -> int | None:
    # Not every architecture has both; multimodal ones keep them one level down.
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _read_card(path: Path) -> ModelCard | None:
    content = read_model_card(path, most=MAX_CARD_BYTES)
    return None if content is None else parse_model_card(content.decode(errors="replace"))
