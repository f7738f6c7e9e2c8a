"""What every question to the hub may end in, in our words, with what to do about it."""

from __future__ import annotations

from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.errors import RepositoryNotFoundError as HubRepositoryNotFoundError
from huggingface_hub.errors import RevisionNotFoundError as HubRevisionNotFoundError
from huggingface_hub.utils import get_token

from loaders.errors import (
    HubError,
    InvalidSpecError,
    LoadError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loaders.repository.protocol import DEFAULT_BRANCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from huggingface_hub import HfApi

_MAX_NAMES = 40  # that an error message lists
_MAX_LISTED = 1000  # repositories of one owner among which a similar name is looked for


@contextmanager
def translated_errors(api: HfApi, repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into our errors, which say what to do.

    Raises InvalidSpecError, RepositoryNotFoundError, RevisionNotFoundError, or HubError where the
    hub did not answer usefully.
    """
    try:
        yield
    except HFValidationError as error:
        raise InvalidSpecError(f"{repo!r} is not a repository's name: {error}") from error
    except GatedRepoError as error:
        raise RepositoryNotFoundError(_gated(api, repo)) from error
    except HubRevisionNotFoundError as error:
        raise no_revision(
            repo, revision or DEFAULT_BRANCH, _revisions(api, repo), "it has"
        ) from error
    except HubRepositoryNotFoundError as error:
        raise RepositoryNotFoundError(_no_repository(api, repo)) from error
    except EntryNotFoundError as error:
        raise HubError(f"{repo} lost a file while it was read; try again") from error
    except HfHubHTTPError as error:
        raise _refused(api, repo, error.response.status_code) from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(
            f"the hub did not answer for {repo} ({type(error).__name__}); check the network and"
            " HF_ENDPOINT"
        ) from error


def _gated(api: HfApi, repo: str) -> str:
    page = f"{api.endpoint}/{repo}"
    if _token_in_use(api):
        return (
            f"{repo} is gated, and the token's owner has no access: accept its terms at {page}, and"
            " check that the token may read gated repositories"
        )
    return f"{repo} is gated: accept its terms at {page}, then give a token (HF_TOKEN)"


def _no_repository(api: HfApi, repo: str) -> str:
    near = _near_repositories(api, repo)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if _token_in_use(api):
        return (
            f"the hub has no repository {repo}, or this token may not see it: check the name, or"
            f" give a token (HF_TOKEN) of somebody who may read it{hint}"
        )
    return (
        f"the hub has no repository {repo}, or it is private: check the name, or give a token"
        f" (HF_TOKEN){hint}"
    )


def _refused(api: HfApi, repo: str, status: int) -> LoadError:
    """Say what an answer of the wrong status asks for."""
    if status == 401:
        return RepositoryNotFoundError(
            f"the hub does not know the token that was given for {repo} (401): make a new one at"
            f" {api.endpoint}/settings/tokens, or unset HF_TOKEN"
        )
    if status == 403:
        return RepositoryNotFoundError(
            f"the hub forbids reading {repo} (403): the token must have the right to read it"
        )
    if status == 404:  # of a mirror that does not say what it is that is missing
        return RepositoryNotFoundError(_no_repository(api, repo))
    if status == 429:
        return HubError(
            f"the hub takes no more requests for {repo} now (429); wait some minutes, or give a"
            " token (HF_TOKEN), which is allowed more"
        )
    return HubError(f"the hub did not answer for {repo} (status {status}); try again later")


def _token_in_use(api: HfApi) -> bool:
    return bool(api.token or get_token())


def _near_repositories(api: HfApi, repo: str) -> list[str]:
    """Find repositories whose names are like one that is not there; none where that fails."""
    owner, _, name = repo.rpartition("/")
    try:
        by_owner = [m.id for m in api.list_models(author=owner, limit=_MAX_LISTED)] if owner else []
        near = get_close_matches(repo, by_owner, n=3)
        if near:
            return near
        found = [m.id for m in api.list_models(search=name, limit=20)]
    except (HTTPError, OSError, ValueError, KeyError, TypeError):
        return []
    named = {one.rpartition("/")[2].lower(): one for one in reversed(found)}
    return [named[n] for n in get_close_matches(name.lower(), named, n=3, cutoff=0.8)]


def no_revision(repo: str, revision: str, known: Sequence[str], verb: str) -> RevisionNotFoundError:
    """Say that a revision does not exist, which ones do, and which one may have been meant."""
    near = get_close_matches(revision, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(known[:_MAX_NAMES]) or "none"
    return RevisionNotFoundError(f"{repo} has no revision {revision!r}; {verb} {names}{hint}")


def _revisions(api: HfApi, repo: str) -> list[str]:
    """List what a repository has, for a message; nothing where the hub fails once more."""
    try:
        refs = api.list_repo_refs(repo)
    except (HTTPError, OSError, ValueError, KeyError, TypeError):
        return []
    return sorted(ref.name for ref in [*refs.branches, *refs.tags])
