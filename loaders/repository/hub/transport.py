"""Bytes of a commit's files over the hub's plain HTTP, from any byte on.

Uses the client's own session, addresses, headers and errors; what is retried, written and checked
is `loaders.repository.download`'s.

Not Xet, the client's newer transport: it rebuilds a file from chunks in an order of its own, so a
killed download leaves nothing to go on from, while a range of plain HTTP begins at any byte. The
hub serves every file both ways up to 50 GB, and may refuse larger ones to plain HTTP: they are
asked for with a warning. The checkpoints read here are published in parts below that.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from loaders.errors import HubError
from loaders.repository.download import Body, TransferError
from loaders.repository.hub.access import translated_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_REFUSED = (400, 401, 403, 404)
_RANGE_REFUSED = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# "api";r=0;t=55: nothing remains, and the window begins anew in 55 s.
_RATE_LIMIT = re.compile(r"\bt\s*=\s*(\d+)")


class HubFileSource:
    """The files of one commit on the hub."""

    def __init__(self, repo: str, commit: str, token: str | None) -> None:
        self._api = HfApi(token=token)
        self._repo = repo
        self._commit = commit
        self._token = token

    @contextmanager
    def open(self, path: str, start: int) -> Iterator[Body]:
        """Read a file from a byte on; see `loaders.repository.download.FileSource`."""
        with ExitStack() as stack:
            response = self._begin(stack, path, start)
            if response.status_code == _RANGE_REFUSED:
                yield Body(start=0, pieces=iter(()))
            else:
                yield Body(start=_start_of(response), pieces=_pieces(response))

    def _begin(self, stack: ExitStack, path: str, start: int) -> Any:
        # Without compression, which would make a range one of compressed bytes.
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        # By commit: whatever happens to the branch meanwhile, all files are of one state. The
        # session follows redirects, and shows the token to no other host.
        request = get_session().stream(
            "GET",
            hf_hub_url(self._repo, path, revision=self._commit),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        )
        with translated_errors(self._api, self._repo, self._commit):
            try:
                response = stack.enter_context(request)
                if response.status_code != _RANGE_REFUSED:
                    hf_raise_for_status(response)
            except HTTPError as error:
                if (passing := passing_failure(error)) is not None:
                    raise passing from error
                raise
            except RuntimeError as error:  # another thread's failure closed the shared session
                raise TransferError(str(error)) from error
        return response


def passing_failure(error: HTTPError) -> TransferError | None:
    """Tell failures that another try may mend from those that stay: None."""
    if not isinstance(error, HfHubHTTPError):
        return TransferError(f"{type(error).__name__}: {error}")
    response = error.response
    # Another host's refusal is of a signed address, which the hub makes anew each time.
    first = response.history[0] if response.history else response
    is_elsewhere = response.url.netloc != first.url.netloc
    if response.status_code in _TRY_AGAIN or (is_elsewhere and response.status_code in _REFUSED):
        reason = f"status {response.status_code} from {response.url.host}"
        if response.status_code == 429:
            reason += ", which takes more requests with a token (HF_TOKEN)"
        return TransferError(reason, retry_after_s=_retry_after_s(response))
    return None


def _retry_after_s(response: Any) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    limit = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return float(limit[1][:9]) if limit and response.status_code == 429 else None


def _start_of(response: Any) -> int:
    if response.status_code != 206:
        return 0  # the server knows no ranges, and sends the whole
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise HubError(f"the hub sent a part of {response.url.path} without saying which")
    return int(match[1])


def _pieces(response: Any) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()
    except HTTPError as error:
        raise TransferError(f"{type(error).__name__}: {error}") from error
