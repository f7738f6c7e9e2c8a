"""Reads the name of a variant: which repository or folder, and which revision of it.

Only text is looked at, and whether a local folder of that name exists; nothing is fetched here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from loaders.errors import InvalidSpecError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w][\w./+=-]*")
_FORMS = (
    "use repo, repo:branch, repo@commit, or a local folder"
    " (./folder, or ./clone:branch for a git clone)"
)


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """A repository (or folder) and the revision asked for."""

    repo: str  # "owner/name" on a hub, or the folder's name for a local one
    folder: Path | None  # set when the variant is a local folder or git clone
    revision: str | None  # branch, tag or commit; None is the default branch

    def __str__(self) -> str:
        name = str(self.folder) if self.folder else self.repo
        return f"{name}:{self.revision}" if self.revision else name


def parse_spec(text: str) -> VariantSpec:
    """Parse `repo`, `repo:branch`, `repo@sha`, a local folder, or `folder:branch` for a clone.

    An existing folder wins over a repository of the same name, as in Transformers.
    """
    text = text.strip()
    if not text:
        raise InvalidSpecError(f"the variant's name is empty; {_FORMS}")
    if Path(text).expanduser().is_dir():
        return _local(Path(text), None)
    name, revision = _split_revision(text)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InvalidSpecError(f"{text!r} names no usable revision after {name!r}; {_FORMS}")
    if Path(name).expanduser().is_dir():
        return _local(Path(name), revision)
    if _looks_like_path(name):
        raise InvalidSpecError(f"there is no folder {name!r}; {_FORMS}")
    if name.endswith(".gguf"):
        raise InvalidSpecError(f"{name!r} is a GGUF file, which is not read yet; {_FORMS}")
    if not _REPO.fullmatch(name) or ".." in name:
        raise InvalidSpecError(f"{name!r} is not a repository's name; {_FORMS}")
    return VariantSpec(repo=name, folder=None, revision=revision)


def _split_revision(text: str) -> tuple[str, str | None]:
    """Cut at the last ':' or '@' that is not part of a path."""
    match = re.fullmatch(r"(?P<name>[^:@]+)[:@](?P<revision>.*)", text)
    return (match["name"], match["revision"]) if match else (text, None)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _local(path: Path, revision: str | None) -> VariantSpec:
    folder = path.expanduser().resolve()
    return VariantSpec(repo=folder.name, folder=folder, revision=revision)
