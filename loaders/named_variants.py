"""Finds the variants that a name means, wherever their repository lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import RevisionNotFoundError
from loaders.opening import open_repository
from loaders.variants import list_variants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.repository import RepositoryFiles
    from loaders.spec import VariantSpec
    from loaders.variants import Variant

_MAX_NAMES = 12  # of files, in a message


def find_variants(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Sequence[Variant]:
    """List the variants that a name means: all of a repository, or the named ones.

    Raises LoadError.
    """
    repository = open_repository(
        spec, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return list_named(repository, spec)


def list_named(repository: RepositoryFiles, spec: VariantSpec) -> Sequence[Variant]:
    """List the variants that a name means; `repo:Q4_K_M` may name a GGUF file's type.

    Raises LoadError.
    """
    if spec.revision is None and spec.file is None:
        return list_variants(repository)
    try:
        found = list_variants(repository, revisions=[repository.find_revision(spec.revision)])
    except RevisionNotFoundError:
        wanted = str(spec.revision).upper()
        found = [v for v in list_variants(repository) if v.gguf_type == wanted]
        if not found:
            raise
    if spec.file is None:
        return found
    named = [v for v in found if v.file == spec.file]
    if not named:
        there = ", ".join(sorted(v.file for v in found if v.file)[:_MAX_NAMES]) or "no GGUF file"
        raise RevisionNotFoundError(f"{spec.repo} has no file {spec.file!r}; it has {there}")
    return named
