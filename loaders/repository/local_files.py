"""Lists and reads files under one folder of this machine, and nothing outside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from loaders.checkpoint.files import MAX_JSON_BYTES
from loaders.checkpoint.regular_files import open_regular
from loaders.errors import CheckpointError, RevisionNotFoundError
from loaders.repository.links import check_link
from loaders.repository.protocol import MAX_FILES, checked_path

if TYPE_CHECKING:
    from pathlib import Path


def no_revision_in(folder: Path, revision: str) -> RevisionNotFoundError:
    """Say that only a git clone has revisions."""
    return RevisionNotFoundError(
        f"{folder} is a plain folder, not a git clone, so it has no revision {revision!r}; name the"
        " folder alone, or one of its files"
    )


def list_paths(folder: Path) -> list[str]:
    """List the regular files under a folder, parts joined by "/"; hidden ones are left out.

    Links to files are followed, links to folders are not.
    """
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.startswith(".") and os.path.isfile(path):
                found.append(checked_path(os.path.relpath(path, folder).replace(os.sep, "/")))
        if len(found) > MAX_FILES:
            raise CheckpointError(
                f"{folder} holds more than {MAX_FILES} files; name the folder of one checkpoint"
            )
    return found


def read_piece(folder: Path, path: str, *, start: int, num_bytes: int | None) -> bytes:
    """Read (a piece of) a file; see `loaders.repository.protocol.RepositoryFiles.read`.

    Raises UnsafeCheckpointError for a link that leads where none may (`loaders.repository.links`).
    """
    target = folder / checked_path(path)
    check_link(folder, path)
    with open_regular(target) as file:
        try:
            file.seek(start)
            piece = file.read(MAX_JSON_BYTES + 1 if num_bytes is None else num_bytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {target}: {error.strerror}") from error
    if num_bytes is None and len(piece) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} is larger than {MAX_JSON_BYTES} bytes; it is no settings file"
        )
    return piece
