"""Reads the name of a variant: which repository or folder, which revision, which file of it.

Only text is looked at, and whether a local folder of that name exists; nothing is fetched here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.errors import InvalidSpecError
from loaders.gguf.parts import is_gguf, without_ending
from loaders.repository.protocol import is_revision_name

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_CHARACTERS = 1024
_MAX_CUTS = 20  # between folder and revision that are tried
_MAX_REPO_CHARACTERS = 200  # the hub takes 96 for the name, after its owner
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EXPLICIT = re.compile(r"(?P<name>.+?)//(@(?P<revision>.+?)//)?(?P<file>.*)", re.DOTALL)
_PATH_STARTS = (".", "/", "~")
_FORMS = (
    "use repo, repo:branch, repo@commit, repo/file.gguf, repo@branch//file.gguf, repo:Q4_K_M,"
    " or what lies on this machine (./folder, ./clone:branch for a git clone, ./file.gguf)"
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
        """Name it in the handiest form that `parse_spec` reads back as the same."""
        forms = list(self._forms())
        return next((form for form in forms if self._is_named_by(form)), forms[0])

    def _forms(self) -> Iterator[str]:
        """Name it in every form, the one that leaves nothing open last."""
        name = str(self.folder) if self.folder else self.repo
        revision, file = self.revision, self.file
        if file is None:
            yield f"{name}:{revision}" if revision else name
        else:
            at_revision = f"{name}@{revision}" if revision else name
            yield f"{at_revision}/{file}"
            yield f"{at_revision}//{file}"
        name = f"{name}." if name.endswith("/") else name
        yield f"{name}//@{revision}//{file or ''}" if revision else f"{name}//{file or ''}"

    def _is_named_by(self, text: str) -> bool:
        try:
            found = parse_spec(text)
        except InvalidSpecError:
            return False
        # What a local one is called follows from the rest.
        name = self.repo if self.folder is None else found.repo
        return found == replace(self, repo=name)


def parse_spec(text: str) -> VariantSpec:
    """Parse one of the forms that name a variant; see `VariantSpec`.

    Where names hold slashes or colons themselves, `repo//@revision//file.gguf` leaves nothing open;
    any of the three may be missing. What lies on this machine wins over a repository of the same
    name, as in Transformers.
    """
    text = text.strip()
    if not text:
        raise InvalidSpecError(f"the variant's name is empty; {_FORMS}")
    if len(text) > _MAX_CHARACTERS:
        raise InvalidSpecError(f"{text[:60]!r}… is too long to be a variant's name; {_FORMS}")
    explicit = _EXPLICIT.fullmatch(text)
    if explicit is not None and (explicit["file"] == "" or is_gguf(explicit["file"])):
        return _parse_explicit(explicit)
    if _is_folder(text):
        return _local(Path(text), revision=None)
    if is_gguf(text):
        return _parse_gguf(text)
    return _named(*_split_revision(text), file=None)


def _parse_explicit(match: re.Match[str]) -> VariantSpec:
    """Parse `name//@revision//file`, or `name@revision//file`."""
    name, revision, file = match["name"], match["revision"], match["file"] or None
    if revision is None and not _is_folder(name):
        name, revision = _split_revision(name)
    return _named(name, revision, file=file)


def _parse_gguf(text: str) -> VariantSpec:
    """Parse a local file, `owner/name/file.gguf`, or the same with `@revision` after the name."""
    if _is_file(text):
        path = Path(text).expanduser()
        return _local(path.parent, revision=None, file=path.name)
    match = re.fullmatch(r"(?P<repo>[^/@:]+/[^/@:]+)([@:](?P<revision>[^/]+))?/(?P<file>.+)", text)
    if match is None or text.startswith(_PATH_STARTS):
        raise InvalidSpecError(f"there is no file {text!r}; {_FORMS}")
    return _named(match["repo"], match["revision"], file=match["file"])


def _named(name: str, revision: str | None, *, file: str | None) -> VariantSpec:
    """Check the three parts of a name."""
    if file is not None and any(part in ("", ".", "..") for part in file.split("/")):
        raise InvalidSpecError(f"{file!r} is no path inside a repository; {_FORMS}")
    if revision is not None and not is_revision_name(revision):
        raise InvalidSpecError(f"{revision!r} after {name!r} names no usable revision; {_FORMS}")
    if _is_folder(name):
        return _local(Path(name), revision=revision, file=file)
    if _looks_like_path(name):
        raise InvalidSpecError(f"there is no folder {name!r}; {_FORMS}")
    return VariantSpec(repo=_checked_repo(name), folder=None, revision=revision, file=file)


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
    """Cut after the longest folder there is of that name, else at the first ':' or '@'."""
    cuts = [at for at, char in enumerate(text) if char in ":@" and at > 0]
    if not cuts:
        return text, None
    folders = (at for at in reversed(cuts[-_MAX_CUTS:]) if _is_folder(text[:at]))
    at = next(folders, cuts[0])
    return text[:at], text[at + 1 :]


def _looks_like_path(name: str) -> bool:
    return name.startswith(_PATH_STARTS) or name.count("/") > 1


def _local(path: Path, *, revision: str | None, file: str | None = None) -> VariantSpec:
    folder = path.expanduser().resolve()
    name = folder.name if file is None else without_ending(file)
    return VariantSpec(repo=name, folder=folder, revision=revision, file=file)
