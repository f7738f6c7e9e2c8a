"""A repository on the hub, read in small pieces: its branches, lists of files, ranges of files.

Everything the hub says is checked here before anybody uses it: paths, sizes, hashes, commits.
Whole checkpoints are fetched in `loaders.repository.hub.fetching`.
"""

from __future__ import annotations

import json
import re
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import structlog
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from loaders.checkpoint.files import MAX_JSON_BYTES
from loaders.errors import CheckpointError, HubError
from loaders.repository.download import Retries, RetryPolicy, TransferError
from loaders.repository.hub.access import no_revision, translated_errors
from loaders.repository.hub.transport import passing_failure
from loaders.repository.protocol import (
    DEFAULT_BRANCH,
    MAX_FILES,
    RepositoryFile,
    Revision,
    checked_path,
    is_commit,
    is_revision_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

log = structlog.get_logger(__name__)

_TIMEOUT_S = 20.0
# Of one question. A hub that asks for more than five minutes is not waited for.
RETRY_POLICY = RetryPolicy(max_tries=5, first_wait_s=0.5, longest_wait_s=8.0, logged_from_s=5.0)
# A server that knows no ranges sends the whole file; this much of it is read past.
_MAX_SKIPPED_BYTES = 64_000_000
_CHECK = "try again later, or check HF_ENDPOINT"
# Of one list of files: the hub sends 50 to 1000 entries a page, at most MAX_FILES are read.
_MAX_PAGES = 400
_MAX_ANSWER_BYTES = 32_000_000  # of the hub's own answers, which are JSON
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class HubFiles:
    """One repository of the hub (`loaders.repository.protocol.RepositoryFiles`).

    All threads share the hub client's one session. endpoint: HF_ENDPOINT where it is not given.
    """

    def __init__(
        self,
        repo: str,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self._repo = repo
        self._retry_policy = retry_policy or RETRY_POLICY
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self._endpoint, token=token)
        # Ranges count the file's own bytes, not those of a compressed answer.
        self._headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
        self._lock = Lock()
        self._revisions: tuple[Revision, ...] | None = None
        self._files: dict[str, tuple[RepositoryFile, ...]] = {}

    @property
    def name(self) -> str:
        """The repository's name, `owner/name`."""
        return self._repo

    def revisions(self) -> Sequence[Revision]:
        """List all branches and tags, the default branch first; the hub is asked once."""
        with self._lock:
            if self._revisions is None:
                refs, _ = self._ask("refs")
                self._revisions = tuple(_read_refs(self._repo, refs))
            return self._revisions

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch, tag or commit; None is the default branch."""
        known = self.revisions()
        wanted = name or default_revision(known)
        for revision in known:
            if wanted in (revision.name, revision.commit):
                return revision
        if wanted is not None and _SHORT_COMMIT.fullmatch(wanted):
            info, _ = self._ask(f"revision/{wanted}", revision=wanted)
            return Revision(wanted, "commit", _commit_in(self._repo, info, "sha"))
        names = sorted(revision.name or "" for revision in known)
        raise no_revision(self._repo, wanted or DEFAULT_BRANCH, names, "it has")

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files at a revision."""
        commit = str(revision.commit)
        if commit not in self._files:
            self._files[commit] = tuple(self._list_files(commit))
        return self._files[commit]

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; fewer bytes than asked for where the file ends."""
        if num_bytes == 0:
            return b""
        url = f"{self._endpoint}/{self._repo}/resolve/{revision.commit}/{quote(checked_path(path))}"
        limit = MAX_JSON_BYTES + 1 if num_bytes is None else num_bytes
        with translated_errors(self._api, self._repo, revision.name):
            piece, _ = self._fetch(url, start=start, limit=limit, is_whole=num_bytes is None)
        if num_bytes is None and len(piece) > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_JSON_BYTES} bytes; it is no settings file"
            )
        return piece

    def _list_files(self, commit: str) -> list[RepositoryFile]:
        files: list[RepositoryFile] = []
        query: Mapping[str, Any] | None = {"recursive": "true"}
        asked: list[Mapping[str, Any]] = []
        while query is not None:
            if query in asked or len(asked) >= _MAX_PAGES:
                raise HubError(f"the hub's list of {self._repo}'s files does not end; {_CHECK}")
            asked.append(query)
            page, query = self._ask(f"tree/{commit}", query=query, revision=commit)
            if query is not None and not page:
                raise HubError(f"the hub's list of {self._repo}'s files has empty pages; {_CHECK}")
            files += [_read_file(self._repo, entry) for entry in _file_entries(self._repo, page)]
            if len(files) > MAX_FILES:
                raise CheckpointError(
                    f"{self._repo} lists more than {MAX_FILES} files; it is no model repository"
                )
        return files

    def _ask(
        self, question: str, *, query: Mapping[str, Any] | None = None, revision: str | None = None
    ) -> tuple[Any, Mapping[str, Any] | None]:
        """Ask the hub's API; return its answer, and the query of the next page if there is one."""
        url = f"{self._endpoint}/api/models/{self._repo}/{question}"
        with translated_errors(self._api, self._repo, revision):
            text, following = self._fetch(
                url, query=query, limit=_MAX_ANSWER_BYTES + 1, is_whole=True
            )
        if len(text) > _MAX_ANSWER_BYTES:
            raise HubError(f"the hub's answer for {self._repo} is longer than any should be")
        try:
            return json.loads(text), following
        except (ValueError, RecursionError) as error:
            raise HubError(
                f"{self._endpoint} did not answer as a hub does for {self._repo}; check HF_ENDPOINT"
            ) from error

    def _fetch(
        self,
        url: str,
        *,
        limit: int,
        is_whole: bool,
        start: int = 0,
        query: Mapping[str, Any] | None = None,
    ) -> tuple[bytes, Mapping[str, Any] | None]:
        """Read an answer up to a limit, again where it fails for a while or breaks off."""
        tries = Retries(self._retry_policy)
        while True:
            try:
                return self._fetch_once(
                    url, limit=limit, is_whole=is_whole, start=start, query=query
                )
            except HTTPError as error:
                passing = passing_failure(error)
                if passing is None:
                    raise
                tries.failed(f"asking the hub for {self._repo}", passing)
            except RuntimeError as error:  # another thread's failure closed the shared session
                tries.failed(f"asking the hub for {self._repo}", TransferError(str(error)))

    def _fetch_once(
        self, url: str, *, limit: int, is_whole: bool, start: int, query: Mapping[str, Any] | None
    ) -> tuple[bytes, Mapping[str, Any] | None]:
        headers = dict(self._headers)
        if not is_whole:
            headers["Range"] = f"bytes={start}-{start + limit - 1}"
        with get_session().stream(
            "GET", url, params=query, headers=headers, timeout=_TIMEOUT_S
        ) as response:
            if response.status_code == 416:  # the file ends before the range begins
                return b"", None
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == 206 else start
            if skipped > _MAX_SKIPPED_BYTES:
                raise HubError(f"{self._endpoint} answers no range requests; use another endpoint")
            body = _read_body(response.iter_bytes(), skipped + limit)
            return body[skipped:], _next_query(response.links)


def default_revision(known: Sequence[Revision]) -> str | None:
    """Name the branch that is meant where none is named; None in an empty repository."""
    names = [revision.name for revision in known]
    return DEFAULT_BRANCH if DEFAULT_BRANCH in names else (names[0] if names else None)


def _read_body(pieces: Iterable[bytes], limit: int) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) >= limit:
            break
    return bytes(body[:limit])


def _next_query(links: Mapping[Any, Mapping[str, str]]) -> dict[str, list[str]] | None:
    """Take the query of the next page, never its address: our token goes to our endpoint only."""
    following = links.get("next", {}).get("url")
    return parse_qs(urlsplit(following).query) if following else None


def _read_refs(repo: str, refs: object) -> list[Revision]:
    if not isinstance(refs, dict):
        raise HubError(f"the hub's list of {repo}'s branches is not an object")
    branches = _read_ref_list(repo, refs.get("branches"), "branch")
    branches.sort(key=lambda revision: revision.name != DEFAULT_BRANCH)
    return [*branches, *_read_ref_list(repo, refs.get("tags"), "tag")]


def _read_ref_list(repo: str, entries: object, kind: Literal["branch", "tag"]) -> list[Revision]:
    if not isinstance(entries, list):
        raise HubError(f"the hub lists no {kind} of {repo}; check HF_ENDPOINT")
    found = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not is_revision_name(name):
            log.warning("revision_left_out", repo=repo, name=repr(name)[:80], reason="odd name")
            continue
        found.append(Revision(name, kind, _commit_in(repo, entry, "targetCommit")))
    return found


def _commit_in(repo: str, entry: object, key: str) -> str:
    commit = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(commit, str) or not is_commit(commit):
        raise HubError(f"the hub names {commit!r:.80} as a commit of {repo}; check HF_ENDPOINT")
    return commit


def _file_entries(repo: str, page: object) -> list[dict[str, Any]]:
    if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
        raise HubError(f"the hub's list of {repo}'s files is not one; check HF_ENDPOINT")
    return [entry for entry in page if entry.get("type") == "file"]


def _read_file(repo: str, entry: Mapping[str, Any]) -> RepositoryFile:
    path = checked_path(entry.get("path"))
    lfs = entry.get("lfs")
    size = (lfs if isinstance(lfs, dict) else entry).get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise HubError(f"the hub gives {path} of {repo} the size {size!r:.40}")
    return RepositoryFile(
        path=path,
        num_bytes=size,
        sha256=_hash_in(lfs, "oid", _SHA256, path) if isinstance(lfs, dict) else None,
        blob_id=_hash_in(entry, "oid", _BLOB_ID, path),
    )


def _hash_in(entry: Mapping[str, Any], key: str, form: re.Pattern[str], path: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not form.fullmatch(value):
        raise HubError(f"the hub gives {path} the hash {value!r:.80}, which is none")
    return value
