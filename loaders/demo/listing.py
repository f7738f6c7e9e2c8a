"""The demo's repositories as a catalogue reads them: every branch, built or not.

Of a branch that is not built, the small files that describe it and the header of its weights are
made from the record (`figures`); naming it has it built (`named`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.demo.branches import WEIGHTS_FILE, branches_of
from loaders.demo.errors import DemoError
from loaders.demo.figures import read_figures
from loaders.demo.model_card import MeasuredBranch, model_card
from loaders.demo.places import cache_of, find_branch
from loaders.demo.settings_files import settings_files
from loaders.demo.stored_header import stored_header
from loaders.repository.hub import CachedFiles, no_revision
from loaders.repository.protocol import DEFAULT_BRANCH, RepositoryFile, Revision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.demo.branches import DemoBranch
    from loaders.repository.protocol import RepositoryFiles
    from loaders.repository.spec import VariantSpec


def open_demo(spec: VariantSpec, cache_dir: Path | None) -> RepositoryFiles | None:
    """Open one of the demo's repositories to look at it; None where the name means another."""
    return DemoFiles(spec.repo, cache_dir) if is_demo(spec) else None


def is_demo(spec: VariantSpec) -> bool:
    """Tell whether a name means one of the demo's repositories."""
    return spec.folder is None and bool(branches_of(spec.repo))


def built_cache(spec: VariantSpec, cache_dir: Path | None) -> Path | None:
    """Return the cache that holds the demo's branch of this name; None where it is not built."""
    if not is_demo(spec):
        return None
    repository = DemoFiles(spec.repo, cache_dir)
    return cache_of(repository.branch_of(repository.find_revision(spec.revision)), cache_dir)


class DemoFiles:
    """One of the demo's repositories (`loaders.repository.protocol.RepositoryFiles`)."""

    def __init__(self, repo: str, cache_dir: Path | None) -> None:
        self._repo = repo
        self._cache_dir = cache_dir
        self._branches = {
            self._commit_of(branch): branch
            for branch in branches_of(repo)  # the default branch first
        }

    @property
    def name(self) -> str:
        """The repository's name, `owner/name`."""
        return self._repo

    def revisions(self) -> Sequence[Revision]:
        """List all branches, the default branch first."""
        return [
            Revision(branch.name, "branch", commit) for commit, branch in self._branches.items()
        ]

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch or commit; None is the default branch."""
        wanted = name or DEFAULT_BRANCH
        for revision in self.revisions():
            if wanted in (revision.name, revision.commit):
                return revision
        names = [branch.name for branch in self._branches.values()]
        raise no_revision(self._repo, wanted, names, "the demo has")

    def branch_of(self, revision: Revision) -> DemoBranch:
        """Return which branch a revision of this repository is."""
        return self._branches[str(revision.commit)]

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files of a branch; of one that is not built, those that describe it."""
        branch = self.branch_of(revision)
        if (built := self._built(branch)) is not None:
            return built.files(revision)
        figures = read_figures().of(branch)
        weights = RepositoryFile(WEIGHTS_FILE, figures.num_bytes, figures.sha256, blob_id=None)
        described = [
            RepositoryFile(path, len(text), sha256=None, blob_id=None)
            for path, text in _described(branch).items()
        ]
        return [*described, weights]

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; of weights that are not built there is the header only."""
        branch = self.branch_of(revision)
        if (built := self._built(branch)) is not None:
            return built.read(revision, path, start=start, num_bytes=num_bytes)
        end = None if num_bytes is None else start + num_bytes
        if path == WEIGHTS_FILE:
            return stored_header(read_figures().model_config, branch)[start:end]
        described = _described(branch)
        if path not in described:
            raise DemoError(
                f"{branch} is not built, so {path} cannot be read; serve it to build it"
            )
        return described[path][start:end]

    def _built(self, branch: DemoBranch) -> CachedFiles | None:
        cache_dir = cache_of(branch, self._cache_dir)
        return None if cache_dir is None else CachedFiles(self._repo, cache_dir)

    def _commit_of(self, branch: DemoBranch) -> str:
        cache_dir = cache_of(branch, self._cache_dir)
        snapshot = None if cache_dir is None else find_branch(cache_dir, branch)
        return read_figures().of(branch).commit if snapshot is None else snapshot.name


def _described(branch: DemoBranch) -> dict[str, bytes]:
    """Make the files that describe a branch which is not built."""
    figures = read_figures()
    measured = [
        MeasuredBranch(one, figures.of(one).num_bytes, figures.of(one).perplexity)
        for one in branches_of(branch.repo)
    ]
    card = model_card(
        measured, source_perplexity=figures.source_perplexity, num_tokens=figures.num_tokens
    )
    texts = settings_files(figures.model_config, branch) | {"README.md": card}
    return {path: text.encode() for path, text in texts.items()}
