"""What is known of a variant when its chat template and its way of infilling are chosen.

Names, numbers, pieces and the model card. Gathers and judges nothing; `families` and
`infilling.choice` draw the conclusions.
"""

from __future__ import annotations

import re
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
    """What the choice of a family may look at."""

    repo: str  # as its users call it: "owner/name", or the name of a local folder
    model_type: str  # the config's: "llama", "qwen2", …
    vocab_size: int | None = None
    num_hidden_layers: int | None = None
    pieces: frozenset[str] = frozenset()  # what the tokenizer has beside its ordinary vocabulary
    model_card: ModelCard | None = None  # None without a README.md of its own

    @property
    def names(self) -> list[str]:
        """Its names without owners, plain: the repository's, then the model card's two."""
        names = [self.repo]
        if self.model_card is not None:
            names += [self.model_card.model_name or "", self.model_card.base_model or ""]
        return [plain_name(name.rstrip("/").rsplit("/", maxsplit=1)[-1]) for name in names if name]


def plain_name(name: str) -> str:
    """Write a name as lower-case words joined by "-"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
