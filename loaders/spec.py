"""Reads the name of a variant: which repository or folder, which revision, which file of it.

Only text is looked at, and whether a local folder of that name exists; nothing is fetched here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from loaders.errors import InvalidSpecError

_MAX_CHARACTERS = 1024
_MAX_REPO_CHARACTERS = 200  # the hub takes 96 for the name, after its owner
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w][\w./+=-]*")
# A GGUF file, or one part of a split one.
_GGUF_FILE = re.compile(r".+\.gguf(-split-[a-z])?", re.IGNORECASE)
_FILE_ENDING = re.compile(r"(-\d{5}-of-\d{5})?\.gguf(-split-[a-z])?$", re.IGNORECASE)
_PATH_STARTS = (".", "/", "~")
_FORMS = (
    "use repo, repo:branch, repo@commit, repo/file.gguf, repo:Q4_K_M, or what lies on this machine"
    " (./folder, ./clone:branch for a git clone, ./file.gguf)"
)


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """A repository (or folder) and the revision asked for."""

    repo: str  # "owner/name" on a hub, or the name of a local folder or file
    folder: Path | None  # set when the variant is a local folder or git clone
    # Branch, tag or commit; None is the default branch. In a repository of GGUF files it may be
    # the quantisation of one of them, as in `repo:Q4_K_M`: only a look at the repository tells.
    revision: str | None
    file: str | None = None  # a GGUF file, as its path in the repository or folder

    def __str__(self) -> str:
        name = str(self.folder) if self.folder else self.repo
        if self.file is not None:
            revision = f"@{self.revision}" if self.revision else ""
            return f"{name}{revision}/{self.file}"
        return f"{name}:{self.revision}" if self.revision else name


def parse_spec(text: str) -> VariantSpec:
    """Parse one of the forms that name a variant; see `VariantSpec`.

    What lies on this machine wins over a repository of the same name, as in Transformers.
    """
    text = text.strip()
    if not text:
        raise InvalidSpecError(f"the variant's name is empty; {_FORMS}")
    if len(text) > _MAX_CHARACTERS:
        raise InvalidSpecError(f"{text[:60]!r}… is too long to be a variant's name; {_FORMS}")
    if _is_folder(text):
        return _local(Path(text), revision=None)
    if _GGUF_FILE.fullmatch(text):
        return _parse_gguf(text)
    name, revision = _split_revision(text)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InvalidSpecError(f"{text!r} names no usable revision after {name!r}; {_FORMS}")
    if _is_folder(name):
        return _local(Path(name), revision=revision)
    if _looks_like_path(name):
        raise InvalidSpecError(f"there is no folder {name!r}; {_FORMS}")
    return VariantSpec(repo=_checked_repo(name), folder=None, revision=revision)


def _parse_gguf(text: str) -> VariantSpec:
    """Parse a local file, `owner/name/file.gguf`, or the same with `@revision` after the name."""
    if _is_file(text):
        path = Path(text).expanduser()
        return _local(path.parent, revision=None, file=path.name)
    match = re.fullmatch(r"(?P<repo>[^/@:]+/[^/@:]+)([@:](?P<revision>[^/]+))?/(?P<file>.+)", text)
    if match is None or text.startswith(_PATH_STARTS):
        raise InvalidSpecError(f"there is no file {text!r}; {_FORMS}")
    if any(part in ("", ".", "..") for part in match["file"].split("/")):
        raise InvalidSpecError(f"{match['file']!r} is no path inside a repository; {_FORMS}")
    revision = match["revision"]
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InvalidSpecError(f"{text!r} names no usable revision; {_FORMS}")
    repo = _checked_repo(match["repo"])
    return VariantSpec(repo=repo, folder=None, revision=revision, file=match["file"])


def _checked_repo(name: str) -> str:
    if not _REPO.fullmatch(name) or ".." in name or len(name) > _MAX_REPO_CHARACTERS:
        raise InvalidSpecError(f"{name[:200]!r} is not a repository's name; {_FORMS}")
    return name


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, RuntimeError):  # longer than any path, or the home of nobody
        return False


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError):
        return False


def _split_revision(text: str) -> tuple[str, str | None]:
    """Cut at the last ':' or '@' that is not part of a path."""
    match = re.fullmatch(r"(?P<name>[^:@]+)[:@](?P<revision>.*)", text)
    return (match["name"], match["revision"]) if match else (text, None)


def _looks_like_path(name: str) -> bool:
    return name.startswith(_PATH_STARTS) or name.count("/") > 1


def _local(path: Path, *, revision: str | None, file: str | None = None) -> VariantSpec:
    folder = path.expanduser().resolve()
    name = folder.name if file is None else _FILE_ENDING.sub("", file)
    return VariantSpec(repo=name, folder=folder, revision=revision, file=file)
