"""Knows where the files of one folder may lie: in it, or in the store of its own cache or clone.

A store may itself be linked to another disk, and a clone's `.git` may be a link or a file that
names a folder elsewhere (submodules, worktrees). Whoever made the folder may have made those links,
too: behind them, only files count that are called as such a store calls its files, after what they
hold. No other file of this machine is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.checkpoint.regular_files import open_regular, read_regular
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOBS = re.compile(r"[0-9a-f]{32,128}(-\d{1,6})?")  # an etag; of the hub's, a hash
_LFS = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{64}")
_ANNEX = re.compile(
    r"(?:[0-9a-zA-Z]{2}/[0-9a-zA-Z]{2}|[0-9a-f]{3}/[0-9a-f]{3})"
    r"/([A-Z0-9_]+(?:-[a-zA-Z]\d+)*--[^/]+)/\1"  # a key, as a folder and as the file in it
)
_OF_CLONES = (("lfs/objects", _LFS), ("annex/objects", _ANNEX))
_MAX_POINTER_BYTES = 8192  # two paths as long as any


class OwnPlaces:
    """Where the files of one folder may lie; links are followed to their ends.

    store: a clone's large files, where the folder was written out of one.
    """

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self._folder = _real(folder)
        self._git_folders = git_folders(folder)
        self._stores = [] if store is None else [_Store(_real(store))]
        self._stores += _stores_of_clone(self._folder, self._git_folders)
        if not self._git_folders:
            self._stores += _stores_of_cache(folder, self._folder)

    @property
    def stores(self) -> list[Path]:
        """The stores' folders; none of a plain folder."""
        return [store.folder for store in self._stores]

    def hold(self, path: Path) -> bool:
        """Whether what lies at a path of the folder is the folder's own."""
        target = _real(path)
        if self.hold_in_store(path):
            return True
        inside = [git for git in self._git_folders if git.is_relative_to(self._folder)]
        hidden = any(target.is_relative_to(git) for git in (self._folder / ".git", *inside))
        return target.is_relative_to(self._folder) and not hidden

    def hold_in_store(self, path: Path) -> bool:
        """Whether a path leads into one of the stores."""
        target = _real(path)
        return any(store.holds(target) for store in self._stores)


def git_folders(folder: Path) -> tuple[Path, ...]:
    """Return a clone's git folder, and the one that its worktrees share; none for other folders."""
    mark = folder / ".git"
    if not mark.exists():
        return ()
    own = mark
    if not mark.is_dir() and (named := _read_path(mark).removeprefix("gitdir: ")):
        own = folder / named
    shared = own / _read_path(own / "commondir")
    return tuple(dict.fromkeys((_real(own), _real(shared))))


def read_model_card(path: Path, *, most: int) -> bytes | None:
    """Read the beginning of a README.md beside weights; None where there is none to be read.

    Nothing needs it, so one that lies elsewhere, or is no file, counts as none.
    """
    is_own = OwnPlaces(path.parent).hold(path) or any(
        OwnPlaces(above).hold_in_store(path) for above in path.parent.parents
    )
    if not is_own:
        return None
    try:
        with open_regular(path) as file:
            return file.read(most)
    except CheckpointError:
        return None


@dataclass(frozen=True, slots=True)
class _Store:
    folder: Path  # without links
    names: re.Pattern[str] | None = None  # of its files; None where any may be linked to

    def holds(self, target: Path) -> bool:
        if not target.is_relative_to(self.folder):
            return False
        return self.names is None or bool(
            self.names.fullmatch(target.relative_to(self.folder).as_posix())
        )


def _stores_of_clone(folder: Path, gits: tuple[Path, ...]) -> Iterator[_Store]:
    for git in gits:
        for below, names in _OF_CLONES:
            store, expected = _real(git / below), folder / ".git" / below
            yield _Store(store, None if store == expected else names)


def _stores_of_cache(*ways: Path) -> Iterator[_Store]:
    """Yield the blobs beside a snapshot, whichever way to it shows that it is one."""
    for way in dict.fromkeys(Path(os.path.abspath(way)) for way in ways):
        repository = way.parent.parent
        if way.parent.name == "snapshots" and repository.name.startswith("models--"):
            store, expected = _real(repository / "blobs"), _real(repository) / "blobs"
            yield _Store(store, None if store == expected else _BLOBS)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _read_path(file: Path) -> str:
    """Read what one of git's files names; nothing where it cannot be read."""
    try:
        return os.fsdecode(read_regular(file, most=_MAX_POINTER_BYTES)).strip().replace("\0", "")
    except CheckpointError:
        return ""
