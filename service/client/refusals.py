"""What a server's refusal means, in words that say what to do about it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from service.client.answer import message_of
from service.client.errors import RefusedError
from service.client.key import KEY_VARIABLE, OPENAI_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_EXCERPT = 200
CONTEXT_LENGTH = "context_length_exceeded"

_BEHIND_PROXY = (502, 504)
_BASE = re.compile(r"https?://.+?/v\d+(?=/|$)")

_ADVICE = {
    "chat_not_supported": "`tetrad complete` goes on from a text",
}


def refusal(status: int, headers: Mapping[str, str], body: bytes, url: str) -> RefusedError:
    """Make the error of an answer that is none. headers: by names in small letters."""
    error = _error_in(body)
    code = error.get("code") if isinstance(error, dict) else None
    code = code if isinstance(code, str) else None
    said = message_of(error) if error else _excerpt(body)
    advice = _advice(status, code, headers, url)
    message = said or f"the server at {url} answers with status {status}"
    return RefusedError(f"{message}; {advice}" if advice else message, code=code)


def _advice(status: int, code: str | None, headers: Mapping[str, str], url: str) -> str:
    if status in (401, 403) and code in (None, "invalid_api_key"):
        return (
            f"put the key into {KEY_VARIABLE} or {OPENAI_VARIABLE}, or name its file with"
            " --api-key-file"
        )
    if 300 <= status < 400:
        return _leads_to(headers.get("location", ""), url)
    if status == 404 and code is None:
        return f"it was asked at {url}: --url takes the API's address, with or without /v1"
    if status in _BEHIND_PROXY and code is None:
        return "a proxy answers there: see whether the server behind it runs"
    if status in (429, 503) and (wait := headers.get("retry-after")):
        return f"try again in {wait} s" if wait.isdigit() else f"try again after {wait}"
    return _ADVICE.get(code or "", "")


def _leads_to(location: str, url: str) -> str:
    """Say where a redirection leads; where that is such an API's path, what --url is to be."""
    if not location:
        return "it leads elsewhere, without saying where; --url names another address"
    try:
        other = urljoin(f"{url}/", location)
    except ValueError:  # brackets without an address
        other = location
    if base := _BASE.match(other):
        return f"it leads elsewhere: give --url {base[0]}"
    return f"it leads to {other[:MAX_EXCERPT]}, and --url takes the API's own address"


def _error_in(body: bytes) -> Any:
    """Find what servers call the error: `error`, or as some do `message` or `detail`."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    return answer.get("error") or answer.get("message") or answer.get("detail")


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return "" if text.startswith("<") else text[:MAX_EXCERPT]
