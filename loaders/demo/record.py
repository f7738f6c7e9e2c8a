"""Builds and measures every branch and writes the figures down: `python -m loaders.demo.record`.

For developers, after a change to the rounding, to the text or to Transformers' version. Takes some
minutes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loaders.demo.branches import BRANCHES, WEIGHTS_FILE, DemoBranch, branches_of
from loaders.demo.checkpoint import write_branch
from loaders.demo.figures import BranchFigures, Figures, write_figures
from loaders.demo.model_card import MeasuredBranch, model_card
from loaders.demo.perplexity import EVALUATION_TEXT, measure_checkpoint, measure_source
from loaders.demo.repository import commit_branch
from loaders.demo.source import SourceModel, read_source
from loaders.demo.wheel import find_gguf
from loaders.repository.manifest import sha256_of_file


def main() -> None:
    """Build each branch in a temporary folder and record what it measures."""
    source = read_source()
    text = EVALUATION_TEXT.read_text(encoding="utf-8")
    figures = Figures(
        text_sha256=sha256_of_file(EVALUATION_TEXT),
        num_tokens=len(source.tokenizer(text)["input_ids"]),
        source_sha256=sha256_of_file(find_gguf()),
        source_perplexity=round(measure_source(source), 4),
        model_config=source.config.to_diff_dict(),
        branches={},
    )
    with TemporaryDirectory() as folder:
        folders = {branch: Path(folder, branch.quant_method, branch.name) for branch in BRANCHES}
        measured = {branch: _measure(folders[branch], source, branch) for branch in BRANCHES}
        branches = {}
        for branch, one in measured.items():
            card = model_card(
                [measured[other] for other in branches_of(branch.repo)],
                source_perplexity=figures.source_perplexity,
                num_tokens=figures.num_tokens,
            )
            (folders[branch] / "README.md").write_text(card, encoding="utf-8")
            sha256 = sha256_of_file(folders[branch] / WEIGHTS_FILE)
            snapshot = commit_branch(Path(folder), branch.repo, branch.name, folders[branch])
            branches[str(branch)] = BranchFigures(
                snapshot.name, sha256, one.num_bytes, one.perplexity
            )
    write_figures(replace(figures, branches=branches))


def _measure(folder: Path, source: SourceModel, branch: DemoBranch) -> MeasuredBranch:
    write_branch(folder, source, branch)
    perplexity = round(measure_checkpoint(folder, source, branch), 4)
    print(f"{branch}: {perplexity:.4f}")
    return MeasuredBranch(branch, (folder / WEIGHTS_FILE).stat().st_size, perplexity)


if __name__ == "__main__":
    main()
