"""Finds the variants that a name means, wherever their repository lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.catalogue.variants import list_variants
from loaders.demo.listing import open_demo
from loaders.errors import RevisionNotFoundError
from loaders.repository.opening import open_repository
from loaders.repository.selection import by_quantisation, describe_gguf_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.catalogue.variants import Variant
    from loaders.repository.protocol import RepositoryFiles, Revision
    from loaders.repository.spec import VariantSpec

_MAX_NAMES = 12  # of files, in a message


def find_variants(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Sequence[Variant]:
    """List the variants that a name means: all of a repository, or the named ones.

    Those of the demo are listed whether they are built or not, and none is built. Raises LoadError.
    """
    repository = open_demo(spec, cache_dir) or open_repository(
        spec, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return list_named(repository, spec)


def list_named(repository: RepositoryFiles, spec: VariantSpec) -> Sequence[Variant]:
    """List the variants that a name means; `repo:Q4_K_M` may name a GGUF file's quantisation.

    Raises LoadError.
    """
    if spec.revision is None and spec.file is None:
        return list_variants(repository)
    revision, file = _resolve(repository, spec)
    found = list_variants(repository, revisions=[revision])
    if file is None:
        return found
    named = [v for v in found if v.file == file]
    if not named:
        there = ", ".join(sorted(v.file for v in found if v.file)[:_MAX_NAMES]) or "no GGUF file"
        raise RevisionNotFoundError(f"{spec.repo} has no file {file!r}; it has {there}")
    return named


def _resolve(repository: RepositoryFiles, spec: VariantSpec) -> tuple[Revision, str | None]:
    """Find the revision and the file, by the rule that downloads follow, too.

    A revision that does not exist may be a quantisation in the name of one of the default branch's
    files. Raises RevisionNotFoundError, also where several files have it.
    """
    try:
        return repository.find_revision(spec.revision), spec.file
    except RevisionNotFoundError as error:
        default = repository.find_revision(None)
        paths = [file.path for file in repository.files(default)]
        named = by_quantisation(spec, paths)
        if named is None:
            raise RevisionNotFoundError(f"{error}{describe_gguf_files(paths)}") from error
        return default, named.file
