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

from loaders.errors import (
    HubError,
    InvalidSpecError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from huggingface_hub import HfApi

_MAX_NAMES = 40  # that an error message lists


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
        raise RepositoryNotFoundError(
            f"{repo} is gated: accept its terms on the hub, then give a token (HF_TOKEN)"
        ) from error
    except HubRevisionNotFoundError as error:
        raise no_revision(repo, revision or "main", _revisions(api, repo), "it has") from error
    except HubRepositoryNotFoundError as error:
        raise RepositoryNotFoundError(
            f"the hub has no repository {repo}, or it is private: check the name, or give a token"
            " (HF_TOKEN)"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(f"{repo} lost a file while it was read: {error}") from error
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(
            f"the hub did not answer for {repo} ({type(error).__name__}); check the network and"
            " HF_ENDPOINT"
        ) from error


def no_revision(repo: str, revision: str, known: Sequence[str], verb: str) -> RevisionNotFoundError:
    """Say that a revision does not exist, which ones do, and which one may have been meant."""
    near = get_close_matches(revision, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(known[:_MAX_NAMES]) or "none"
    return RevisionNotFoundError(f"{repo} has no revision {revision!r}; {verb} {names}{hint}")


def _revisions(api: HfApi, repo: str) -> list[str]:
    refs = api.list_repo_refs(repo)
    return sorted(ref.name for ref in [*refs.branches, *refs.tags])
