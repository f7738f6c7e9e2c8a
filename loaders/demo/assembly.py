"""Makes the files of branches: reads the source once, rounds, measures what no record knows.

Where they go, and under which lock, is `build`'s. Imports torch and Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.demo.branches import WEIGHTS_FILE, DemoBranch, branches_of
from loaders.demo.checkpoint import write_branch
from loaders.demo.figures import read_figures
from loaders.demo.model_card import MeasuredBranch, model_card
from loaders.demo.perplexity import (
    EVALUATION_TEXT,
    measure_checkpoint,
    measure_source,
    recorded_perplexity,
)
from loaders.demo.source import SourceModel, read_source
from loaders.demo.wheel import find_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from loaders.demo.progress import BuildProgress


@dataclass(frozen=True, slots=True)
class AssembledBranch:
    """A branch whose files are all written."""

    branch: DemoBranch
    folder: Path
    perplexity: float


def assemble_branches(
    branches: Sequence[DemoBranch], parent: Path, progress: BuildProgress
) -> Iterator[AssembledBranch]:
    """Write one branch after the other into folders of `parent`."""
    progress.on_step(f"reading {find_gguf().name}")
    source = read_source()
    source_perplexity = _source_perplexity(source, progress)
    num_tokens = len(source.tokenizer(EVALUATION_TEXT.read_text(encoding="utf-8"))["input_ids"])
    for number, branch in enumerate(branches, start=1):
        of_all = f" ({number} of {len(branches)})" if len(branches) > 1 else ""
        progress.on_step(f"rounding {branch}{of_all}")
        folder = parent / branch.quant_method / branch.name
        write_branch(folder, source, branch, on_percent_done=progress.on_percent_done)
        perplexity = _branch_perplexity(folder, source, branch, progress)
        card = model_card(
            _measured(branch, folder, perplexity),
            source_perplexity=source_perplexity,
            num_tokens=num_tokens,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        yield AssembledBranch(branch, folder, perplexity)


def _measured(built: DemoBranch, folder: Path, perplexity: float) -> list[MeasuredBranch]:
    """List what the model card says of each branch: what was built, and the record of the rest."""
    figures = read_figures()
    return [
        MeasuredBranch(branch, (folder / WEIGHTS_FILE).stat().st_size, perplexity)
        if branch is built
        else MeasuredBranch(branch, figures.of(branch).num_bytes, figures.of(branch).perplexity)
        for branch in branches_of(built.repo)
    ]


def _branch_perplexity(
    folder: Path, source: SourceModel, branch: DemoBranch, progress: BuildProgress
) -> float:
    recorded = recorded_perplexity(folder / WEIGHTS_FILE)
    if recorded is not None:
        return recorded
    progress.on_step(f"measuring the perplexity of {folder.name}, which is not on record")
    return measure_checkpoint(folder, source, branch)


def _source_perplexity(source: SourceModel, progress: BuildProgress) -> float:
    recorded = recorded_perplexity(find_gguf())
    if recorded is not None:
        return recorded
    progress.on_step("measuring the perplexity of the source, which is not on record")
    return measure_source(source)
