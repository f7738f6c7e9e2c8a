"""Where the server is: what people give as its address, made into the base of its paths."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from service.client.errors import WrongQuestionError
from service.settings import Settings
from service.settings.keys import is_loopback

_VERSION = re.compile(r"/v\d+$")


def default_address() -> str:
    """Return where `tetrad serve` listens unless it is told otherwise."""
    fields = Settings.model_fields
    return f"http://{fields['host'].default}:{fields['port'].default}"


def base_url(given: str) -> str:
    """Return the base of the API's paths, which ends in `/v1`; it may be given without.

    Raises WrongQuestionError where it is no address.
    """
    parts = _split(given if "://" in given else f"http://{given}")
    path = parts.path.rstrip("/")
    if not _VERSION.search(path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def stays_on_this_machine(url: str) -> bool:
    """Tell whether requests to an address reach this machine only."""
    return is_loopback(urlsplit(url).hostname or "")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")  # as the socket will
    except ValueError:  # a port that is no number, brackets without an address, an empty label
        is_usable = False
    if not is_usable or not url.isascii() or not url.isprintable() or " " in url:
        raise WrongQuestionError(f"{url!r} is no address; give one as in {default_address()}")
    if parts.username is not None or parts.query or parts.fragment:
        raise WrongQuestionError(
            "the address may hold a host, a port and a path; a key goes into TETRAD_API_KEY"
        )
    return parts
