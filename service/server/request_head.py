"""What must be right in the head of a request, beyond what its parser looks at.

Two programs that read one request differently are how requests are smuggled past the first of
them; so what can be read in two ways is refused. Knows nothing of sockets.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.server.refusals import Refusal, malformed, not_spoken

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSIONS = ("1.0", "1.1")
MAX_LENGTH_DIGITS = 19
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(/?[^?]*)(?:\?(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request without its body."""

    method: str
    version: str  # of HTTP
    headers: Sequence[tuple[bytes, bytes]]  # names in small letters
    raw_path: bytes  # as sent
    path: str  # without escapes
    query: bytes
    is_chunked: bool
    content_length: int  # 0 where there is no body, or its length isn't told
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self.is_chunked or self.content_length > 0

    def framing(self) -> bytes:
        """Return a head that says of the body what this one does, and nothing else."""
        if self.is_chunked:
            return b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        return b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % self.content_length


def read_head(
    method: bytes,
    target: bytes,
    version: str,
    headers: Sequence[tuple[bytes, bytes]],
    root_path: str = "",
) -> RequestHead:
    """Return what a request's head says. Raises Refusal.

    headers: names in small letters. root_path: what a proxy puts before every path; taken off
    where the proxy has left it there, so that a path has one form, whose key is known.
    """
    if version not in VERSIONS:
        raise not_spoken()
    if method == b"CONNECT":
        raise Refusal(405, "method_not_allowed", "this server is no proxy; it takes no CONNECT")
    hosts: list[bytes] = []
    codings: list[bytes] = []
    content_length = 0
    expects_continue = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"content-length":
            content_length = _read_length(value)
        elif name == b"expect" and version == "1.1":
            expects_continue = _read_expectation(value)
    _check_hosts(hosts, version)
    _check_codings(codings, version)
    raw_path, query, authority = _split_target(method, target)
    if authority is not None and hosts and authority.lower() != hosts[0].lower():
        raise malformed("the host in the request's first line is another than in its Host header")
    raw_path = _without_root(raw_path, root_path.encode())
    path = raw_path.decode("ascii")
    return RequestHead(
        method=method.decode("ascii"),
        version=version,
        headers=headers,
        raw_path=raw_path,
        path=urllib.parse.unquote(path) if "%" in path else path,
        query=query,
        is_chunked=bool(codings),
        content_length=content_length,
        expects_continue=expects_continue,
    )


def _check_hosts(hosts: Sequence[bytes], version: str) -> None:
    if len(hosts) > 1:
        raise malformed("the request has more than one Host header; send one")
    if not hosts and version == "1.1":
        raise malformed("the request has no Host header, which HTTP/1.1 asks for")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise malformed("the Host header is no host; send a name or an address, and a port")


def _check_codings(codings: Sequence[bytes], version: str) -> None:
    if not codings:
        return
    if version == "1.0":
        raise malformed("HTTP/1.0 has no Transfer-Encoding; send Content-Length")
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise malformed("the only Transfer-Encoding taken here is chunked, once")


def _read_length(value: bytes) -> int:
    """Read Content-Length, whose digits, and that it stands alone, the parser has checked.

    It lets any number of zeros lead them, of which Python takes some thousands for an attack.
    """
    if len(value) > MAX_LENGTH_DIGITS:
        raise malformed(f"Content-Length has more than {MAX_LENGTH_DIGITS} digits")
    return int(value)


def _read_expectation(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise Refusal(417, "expectation_failed", "the only Expect taken here is 100-continue")
    return True


def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return path, query and, where the target is a whole URL, its host."""
    if b"#" in target:
        raise malformed("the request's target has a fragment (#), which is never sent")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query, None
    if target == b"*" and method == b"OPTIONS":
        return target, b"", None
    if (url := _ABSOLUTE.fullmatch(target)) is None:
        raise malformed("the request's target is neither a path nor an http URL")
    return url[2] or b"/", url[3] or b"", url[1]


def _without_root(raw_path: bytes, root: bytes) -> bytes:
    if root and raw_path.startswith(root) and raw_path[len(root) : len(root) + 1] in (b"/", b""):
        return raw_path[len(root) :] or b"/"
    return raw_path
