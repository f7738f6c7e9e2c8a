"""What is known of every branch before it is built: commit, size, hash and perplexity.

A build gives the same bits everywhere (see `quantize`), so that all of it is recorded with the
package: `python -m loaders.demo.record` writes it, and a test holds it against real builds. The
commit depends on the small files too, and these on Transformers' version, which is recorded in the
model's config.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.demo.branches import BRANCHES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.demo.branches import DemoBranch

RECORD = Path(__file__).with_name("figures.json")


@dataclass(frozen=True, slots=True)
class BranchFigures:
    """What was found out about one branch when it was recorded."""

    commit: str
    sha256: str  # of the weights file
    num_bytes: int  # of the weights file
    perplexity: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found out about the demo."""

    text_sha256: str  # of the text that perplexities were measured on
    num_tokens: int  # of that text
    source_sha256: str
    source_perplexity: float
    model_config: Mapping[str, Any]  # of the model before it is packed
    branches: Mapping[str, BranchFigures]  # by "repo:branch"

    def of(self, branch: DemoBranch) -> BranchFigures:
        """Return what is recorded of one branch."""
        return self.branches[str(branch)]

    def perplexity_of_weights(self, sha256: str) -> float | None:
        """Return what was measured for the file of this hash, None if nothing was."""
        measured = {one.sha256: one.perplexity for one in self.branches.values()}
        measured[self.source_sha256] = self.source_perplexity
        return measured.get(sha256)


@cache
def read_figures() -> Figures:
    """Read the record."""
    value = json.loads(RECORD.read_text(encoding="utf-8"))
    branches = {name: BranchFigures(**entry) for name, entry in value.pop("branches").items()}
    return Figures(**value, branches=branches)


def write_figures(figures: Figures) -> None:
    """Replace the record."""
    RECORD.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    read_figures.cache_clear()


def recorded_commit_perplexity(commit: str | None) -> float | None:
    """Return the perplexity of a branch by its commit, None for what is no branch of the demo."""
    figures = read_figures()
    found = (figures.of(branch) for branch in BRANCHES)
    return next((one.perplexity for one in found if one.commit == commit), None)
