"""A repository's variants: its branches, tags and GGUF files, with everything that a choice needs.

Reads small files and headers only, never weights. What a variant needs of memory is a question for
`loaders.plan`, how its files get here one for `loaders.download`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from loaders.card_table import CardRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint import TensorInfo
    from loaders.quantization import Quantization

__all__ = ["CardRow", "Variant", "VariantKind"]


class VariantKind(StrEnum):
    """What sort of checkpoint a variant is."""

    GPTQ = "gptq"
    AWQ = "awq"
    GGUF = "gguf"
    DENSE = "dense"  # fp16, bf16 or fp32
    OTHER = "other"  # quantised in a way that is not read here; `refusal` says which


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One checkpoint that a repository holds."""

    repo: str
    revision: str | None  # branch or tag; None for a plain folder
    commit: str | None
    kind: VariantKind
    file: str | None = None  # of a GGUF variant: its file, the first where it is split
    quantization: Quantization | None = None  # of GPTQ and AWQ
    gguf_type: str | None = None  # Q4_K_M, as the file's name or header says
    damp: float | None = None
    dataset: str | None = None
    seq_len: int | None = None  # of the dataset, in tokens
    weight_bytes: int = 0  # of all tensors, as stored
    # Every tensor by name, from headers. GGUF ones keep GGUF's names, their shapes are PyTorch's.
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    # config.json without what could run code; of a GGUF file, what its metadata amounts to.
    config: Mapping[str, Any] = field(default_factory=dict)
    card: CardRow | None = None
    # What card and files, or two files, say differently: sentences for people.
    disagreements: tuple[str, ...] = ()
    refusal: str | None = None  # why it cannot be loaded here; None where nothing speaks against it

    @property
    def spec(self) -> str:
        """Name it as `tetrad serve` takes it."""
        if self.file is not None:
            revision = f"@{self.revision}" if self.revision else ""
            return f"{self.repo}{revision}/{self.file}"
        return f"{self.repo}:{self.revision}" if self.revision else self.repo
