"""HTTP as it must not be, and as few clients send it: what is sent, and what comes of it.

Each is sent over a connection of its own. `statuses` are those of the answers, in order, interim
ones as well; an input after which the connection stays open is followed by a plain request on it,
whose answer shows that both ends still agree on where requests begin.
"""

from __future__ import annotations

from dataclasses import dataclass

KEY = b"sk-raw"
MODEL = b"fake/model"
HEADER_TIMEOUT_S = 1.5  # the server's, as this table is written for it
BODY_TIMEOUT_S = 1.5
FIRST_BYTE_TIMEOUT_S = 1.5
IDLE_TIMEOUT_S = 2.5
MAX_HEADERS = 100
MAX_HEADER_SIZE = 64 * 1024
MAX_BODY_SIZE = 256 * 1024

AUTH = b"authorization: Bearer " + KEY + b"\r\n"
BODY = b'{"model":"' + MODEL + b'","prompt":"hi","max_tokens":2}'


@dataclass(frozen=True)
class RawInput:
    """One connection."""

    name: str
    pieces: tuple[bytes, ...]  # sent one after the other, each once the one before has gone
    statuses: tuple[int, ...]
    closes: bool  # whether the server ends the connection afterwards
    methods: tuple[str, ...] = ("GET",)  # of the requests, as an answer to HEAD has no body
    says: bytes = b""  # somewhere in the answers


def head(line: bytes, *headers: bytes, host: bytes | None = b"x") -> bytes:
    lines = [line, *([] if host is None else [b"Host: " + host]), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return head(method + b" " + path + b" HTTP/" + version, *headers)


def keyed(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return get(path, AUTH.strip(), *headers, method=method)


def post(*headers: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    """A completion, with the length or coding that the headers say."""
    own = (AUTH.strip(), b"content-type: application/json", *headers)
    return get(b"/v1/completions", *own, method=b"POST", version=version) + body


def sized(*headers: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    return post(b"content-length: %d" % len(body), *headers, body=body, version=version)


def chunked(body: bytes, *headers: bytes) -> bytes:
    return post(b"transfer-encoding: chunked", *headers, body=body)


def chunks(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def stays(name: str, sent: bytes | tuple[bytes, ...], *statuses: int, **more: object) -> RawInput:
    pieces = sent if isinstance(sent, tuple) else (sent,)
    return RawInput(name, pieces, statuses, closes=False, **more)  # type: ignore[arg-type]


def ends(name: str, sent: bytes | tuple[bytes, ...], *statuses: int, **more: object) -> RawInput:
    pieces = sent if isinstance(sent, tuple) else (sent,)
    return RawInput(name, pieces, statuses, closes=True, **more)  # type: ignore[arg-type]


def headers_of(size: int) -> bytes:
    """A request whose headers have that many bytes, as they are counted: line ends, too."""
    plain = b"host: x\r\na: "
    return b"GET /health/live HTTP/1.1\r\n" + plain + b"v" * (size - len(plain) - 2) + b"\r\n\r\n"


def num_headers(count: int) -> bytes:
    return get(b"/health/live", *(b"h%d: v" % number for number in range(count - 1)))


LIVE = get(b"/health/live")
MODELS = b"/v1/models"

KEYS = [
    stays("no key", get(MODELS), 401),
    stays("empty key", get(MODELS, b"authorization:"), 401),
    stays("a scheme without a key", get(MODELS, b"authorization: Bearer"), 401),
    stays("a scheme and a space", get(MODELS, b"authorization: Bearer  "), 401),
    stays("another scheme", get(MODELS, b"authorization: Basic c2stcmF3"), 401),
    stays("a key without its scheme", get(MODELS, b"authorization: " + KEY), 401),
    stays("a wrong key", get(MODELS, b"authorization: Bearer sk-other"), 401),
    stays("the key and more", get(MODELS, b"authorization: Bearer " + KEY + b"x"), 401),
    ends("a key of 1 MB", get(MODELS, b"authorization: Bearer " + b"k" * 1_000_000), 431),
    stays("a key of 60 KB", get(MODELS, b"authorization: Bearer " + b"k" * 60_000), 401),
    stays("a key not of ASCII", get(MODELS, b"authorization: Bearer \xff\xfe\xc3\xa9"), 401),
    ends("a key with NUL", get(MODELS, b"authorization: Bearer a\x00b"), 400),
    stays("a wrong key before the right one",
          get(MODELS, b"authorization: Bearer sk-other", AUTH.strip()), 401),
    stays("the right key before a wrong one",
          get(MODELS, AUTH.strip(), b"authorization: Bearer sk-other"), 401),
    stays("the right key", keyed(MODELS), 200),
    stays("the right key by x-api-key", get(MODELS, b"x-api-key: " + KEY), 200),
    stays("a key as a trailer", chunked(chunks(BODY, end=b"0\r\n" + AUTH + b"\r\n"))
          .replace(AUTH, b"", 1), 401),
]  # fmt: skip

PATHS = [
    ends("a path as a host", head(b"GET /v1/models HTTP/1.1", host=b"x/health?"), 400),
    ends("a fragment as a host", head(b"GET /v1/models HTTP/1.1", host=b"x#"), 400),
    ends("a user as a host", head(b"GET /v1/models HTTP/1.1", host=b"u@x"), 400),
    ends("a space in a host", head(b"GET /v1/models HTTP/1.1", host=b"x y"), 400),
    ends("a host not of ASCII", head(b"GET /v1/models HTTP/1.1", host=b"\xff"), 400),
    stays("a host with a port", head(b"GET /health/live HTTP/1.1", host=b"x:8000"), 200),
    stays("a host by its address", head(b"GET /health/live HTTP/1.1", host=b"[::1]:8000"), 200),
    stays("two slashes", get(b"//v1/models"), 401),
    stays("two slashes, with the key", keyed(b"//v1/models"), 404),
    stays("up from an open path", get(b"/health/../v1/models"), 401),
    stays("up to an open path", get(b"/v1/../health/live"), 401),
    stays("up to an open path, with the key", keyed(b"/v1/../health/live"), 404),
    stays("an escaped dot", get(b"/v1/%2e%2e/health/live"), 401),
    stays("an escaped letter", get(b"/%76%31/models"), 401),
    stays("an escaped letter, with the key", keyed(b"/%76%31/models"), 200),
    stays("an escaped slash", get(b"/health%2flive"), 200),
    stays("an escaped NUL", keyed(b"/v1/models%00"), 404),
    stays("half an escape", keyed(b"/v1/models%2"), 404),
    stays("an escape not of UTF-8", keyed(b"/v1/models/%ff%fe"), 404),
    stays("an open path as the query", get(b"/v1/models?/health/live"), 401),
    stays("an open path as a parameter", get(b"/v1/models;/health/live"), 401),
    stays("an open path with a slash behind", get(b"/health/live/"), 401),
    stays("an open path in capitals", get(b"/HEALTH/LIVE"), 401),
    ends("a fragment", get(b"/health/live#x"), 400),
    ends("a path not of ASCII", get(b"/h\xc3\xa9"), 400),
    ends("a space in a path", get(b"/health/live x"), 400),
    ends("a path without a slash", get(b"health/live"), 400),
    ends("a query alone", get(b"?x"), 400),
    stays("the whole URL", get(b"http://x/health/live"), 200),
    stays("the whole URL of what asks for a key", get(b"http://x/v1/models"), 401),
    ends("the URL of another host", get(b"http://y/health/live"), 400),
    ends("the URL of a file", get(b"file:///etc/passwd"), 400),
    ends("a URL with a user", get(b"http://u@x/health/live"), 400),
    stays("a path of 60 KB", keyed(b"/" + b"a" * 60_000), 404),
    ends("a path of 65 KB", keyed(b"/" + b"a" * 65_536), 414),
    ends("a path of 1 MB", keyed(b"/" + b"a" * 1_000_000), 414),
    stays("a star", get(b"*", method=b"OPTIONS"), 401),
    ends("a star, but no OPTIONS", get(b"*"), 400),
]

METHODS = [
    ends("CONNECT", head(b"CONNECT x:443 HTTP/1.1"), 405),
    stays("TRACE", keyed(MODELS, method=b"TRACE"), 405),
    stays("OPTIONS", keyed(MODELS, method=b"OPTIONS"), 405),
    stays("HEAD", keyed(MODELS, method=b"HEAD"), 200, methods=("HEAD",)),
    stays("HEAD without a key", get(MODELS, method=b"HEAD"), 401, methods=("HEAD",)),
    stays("HEAD of what takes POST", keyed(b"/v1/completions", method=b"HEAD"), 405,
          methods=("HEAD",)),
    stays("DELETE", keyed(MODELS, method=b"DELETE"), 405),
    stays("PROPFIND", keyed(MODELS, method=b"PROPFIND"), 405),
    ends("a method that there is not", keyed(MODELS, method=b"FETCH"), 400),
    ends("a method in small letters", keyed(MODELS, method=b"get"), 400),
    ends("a method of 1 MB", keyed(MODELS, method=b"G" * 1_000_000), 400),
    stays("GET with a body", get(b"/health/live", b"content-length: 3") + b"abc", 200),
    stays("HEAD with a body", get(b"/health/live", b"content-length: 3", method=b"HEAD") + b"abc",
          200, methods=("HEAD",)),
]  # fmt: skip

VERSIONS = [
    ends("HTTP/0.9", b"GET /health/live\r\n\r\n", 505),
    ends("HTTP/0.9, one line", b"GET /health/live\r\n", 408),
    ends("HTTP/1.0", head(b"GET /health/live HTTP/1.0", host=None), 200),
    ends("HTTP/1.0 with a host", head(b"GET /health/live HTTP/1.0"), 200),
    ends("HTTP/1.0 with two hosts", head(b"GET /health/live HTTP/1.0", b"Host: y"), 400),
    stays("HTTP/1.0 that keeps alive",
          head(b"GET /health/live HTTP/1.0", b"Connection: keep-alive", host=None), 200,
          says=b"connection: keep-alive"),
    ends("HTTP/1.0 with a body", sized(version=b"1.0"), 200),
    ends("HTTP/1.0 with chunks", post(b"transfer-encoding: chunked", body=chunks(BODY),
         version=b"1.0"), 400),
    ends("HTTP/1.0, streamed", sized(
        version=b"1.0", body=BODY.replace(b"{", b'{"stream":true,')), 200, says=b"data: [DONE]"),
    ends("HTTP/1.0, streamed, that keeps alive", sized(
        b"connection: keep-alive", version=b"1.0", body=BODY.replace(b"{", b'{"stream":true,')),
         200, says=b"connection: close"),
    ends("HTTP/1.2", head(b"GET /health/live HTTP/1.2"), 505),
    ends("HTTP/2.0 in words", head(b"GET /health/live HTTP/2.0"), 505),
    ends("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
    ends("HTTP/3", head(b"GET /health/live HTTP/3"), 400),
    ends("HTTP/11", head(b"GET /health/live HTTP/11"), 400),
    ends("http in small letters", head(b"GET /health/live http/1.1"), 400),
    ends("no version, but headers", b"GET /health/live\r\nHost: x\r\n\r\n", 505),
    ends("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, says=b"TLS"),
    ends("noise", bytes(range(256)) * 4, 400),
    ends("SSH", b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    stays("an offer of h2c", get(b"/health/live", b"Connection: Upgrade, HTTP2-Settings",
          b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), 200),
    stays("an offer of h2c with a body", sized(b"Connection: Upgrade", b"Upgrade: h2c"), 200),
    stays("an offer of h2c with chunks", chunked(
        chunks(BODY[:9], BODY[9:]), b"Connection: Upgrade", b"Upgrade: h2c"), 200),
    stays("an offer of h2c, its body later",
          (sized(b"Connection: Upgrade", b"Upgrade: h2c")[:-9], BODY[-9:]), 200),
    stays("two offers of h2c at once", 2 * sized(b"Connection: Upgrade", b"Upgrade: h2c"),
          200, 200),
    stays("a websocket", get(b"/health/live", b"Connection: Upgrade", b"Upgrade: websocket",
          b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Version: 13"), 200),
]  # fmt: skip

HEADERS = [
    ends("no host", head(b"GET /health/live HTTP/1.1", host=None), 400),
    stays("an empty host", head(b"GET /health/live HTTP/1.1", host=b""), 200),
    ends("two hosts", get(b"/health/live", b"Host: y"), 400),
    ends("one host twice", get(b"/health/live", b"Host: x"), 400),
    ends("two hosts in one", head(b"GET /health/live HTTP/1.1", host=b"x, y z"), 400),
    stays("100 headers", num_headers(100), 200),
    ends("101 headers", num_headers(101), 431),
    ends("10 000 headers", num_headers(10_000), 431),
    stays("headers of 64 KB less one byte", headers_of(MAX_HEADER_SIZE - 1), 200),
    stays("headers of 64 KB", headers_of(MAX_HEADER_SIZE), 200),
    ends("headers of 64 KB and a byte", headers_of(MAX_HEADER_SIZE + 1), 431),
    ends("a header without an end", b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"v" * 300_000, 431),
    ends("a name without an end", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"v" * 300_000, 431),
    ends("a header of spaces without an end", b"GET / HTTP/1.1\r\na:" + b" " * 300_000, 431),
    ends("a folded header", get(b"/health/live", b"a: b\r\n c"), 400),
    ends("a header folded at once", get(b"/health/live", b"a:\r\n c"), 400),
    ends("a folded host", b"GET /health/live HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", 400),
    ends("a space before the headers", b"GET /health/live HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ends("a space before a colon", get(b"/health/live", b"a : b"), 400),
    ends("a header without a colon", get(b"/health/live", b"abc"), 400),
    ends("a header without a name", get(b"/health/live", b": b"), 400),
    ends("a name not of ASCII", get(b"/health/live", b"\xc3\xa9: b"), 400),
    stays("a value not of ASCII", get(b"/health/live", b"a: \xff"), 200),
    ends("NUL in a value", get(b"/health/live", b"a: b\x00c"), 400),
    ends("CR in a value", get(b"/health/live", b"a: b\rc: d"), 400),
    ends("LF for a line's end", b"GET /health/live HTTP/1.1\nHost: x\n\n", 400),
    ends("LF for one line's end", get(b"/health/live", b"a: b\nc: d"), 400),
    stays("empty lines before", b"\r\n\r\n" + LIVE, 200),
    stays("a header in capitals", head(b"GET /health/live HTTP/1.1", b"HOST: x", host=None), 200),
    stays("a request byte by byte", tuple(bytes([byte]) for byte in LIVE), 200),
    ends("Connection: close", get(b"/health/live", b"Connection: close"), 200,
         says=b"connection: close"),
    ends("Connection: x, Close", get(b"/health/live", b"Connection: x, Close"), 200),
    stays("Connection: keep-alive", get(b"/health/live", b"Connection: keep-alive"), 200),
    stays("an id with a line's end escaped", get(b"/health/live", b"x-request-id: a%0d%0ab"), 200),
    stays("a range", keyed(MODELS, b"Range: bytes=0-1"), 200),
    stays("a forwarded path", get(MODELS, b"X-Forwarded-Prefix: /health/live",
          b"X-Original-URL: /health/live", b"X-Rewrite-URL: /health/live"), 401),
    stays("a forwarded address", get(MODELS, b"X-Forwarded-For: 127.0.0.1"), 401),
    stays("another method in a header", get(b"/health/live", b"X-HTTP-Method-Override: POST"), 200),
]  # fmt: skip

BODIES = [
    stays("a body", sized(), 200),
    stays("an empty body", sized(body=b""), 400),
    stays("a body byte by byte",
          (sized()[: -len(BODY)], *(bytes([byte]) for byte in BODY)), 200),
    stays("no length and no body", post(body=b""), 400),
    stays("no length, but a body", post(body=LIVE), 400, 200),
    ends("a length too short", post(b"content-length: %d" % (len(BODY) - 9)), 400, 400),
    ends("a length too long", post(b"content-length: %d" % (len(BODY) + 9)), 408),
    ends("a length twice", sized(b"content-length: %d" % len(BODY)), 400),
    ends("two lengths", sized(b"content-length: 3"), 400),
    ends("two lengths in one", post(b"content-length: %d, 3" % len(BODY)), 400),
    ends("no number as a length", post(b"content-length: abc"), 400),
    ends("an empty length", post(b"content-length:"), 400),
    ends("a length with thousands of zeros", post(b"content-length: " + b"0" * 5000 + b"5"), 400),
    ends("a negative length", post(b"content-length: -1"), 400),
    ends("a length with a plus", post(b"content-length: +%d" % len(BODY)), 400),
    ends("a length in hex", post(b"content-length: 0x10"), 400),
    ends("a length beyond 64 bits", post(b"content-length: " + b"9" * 30), 400),
    ends("a length of 9 EB", post(b"content-length: 9223372036854775807", body=b""), 413),
    ends("a length and chunks", sized(b"transfer-encoding: chunked"), 400),
    ends("chunks and a length", chunked(chunks(BODY), b"content-length: 3"), 400),
    stays("chunks", chunked(chunks(BODY[:5], BODY[5:])), 200),
    stays("chunks of one byte", chunked(chunks(*(bytes([byte]) for byte in BODY))), 200),
    stays("chunks with an extension", chunked(b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
          200),
    stays("a size with zeros before", chunked(b"000%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
          200),
    ends(
        "the end of the connection as a trailer",
        chunked(chunks(BODY, end=b"0\r\nConnection: close\r\n\r\n")),
        400,
    ),
    ends("a host as a trailer", chunked(chunks(BODY, end=b"0\r\nhost: y\r\n\r\n")), 400),
    stays("blanks behind a host", head(b"GET /health/live HTTP/1.1", host=b"x \t "), 200),
    stays(
        "blanks behind a length", post(b"content-length: %d%b" % (len(BODY), b" " * 22)), 200
    ),
    stays("a trailer", chunked(chunks(BODY, end=b"0\r\na: b\r\n\r\n")), 200),
    ends("101 trailers", chunked(chunks(BODY, end=b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n")), 431),
    ends("a trailer without an end", chunked(chunks(BODY, end=b"0\r\na: " + b"b" * 300_000)), 431),
    ends("an extension without an end", chunked(b"1;" + b"a" * 300_000), 431),
    ends("a size that is no number", chunked(b"zz\r\nabc\r\n0\r\n\r\n"), 400),
    ends("an empty size", chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    ends("a negative size", chunked(b"-1\r\nabc\r\n0\r\n\r\n"), 400),
    ends("a size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    ends("a size with a space behind", chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    ends("a size beyond 64 bits", chunked(b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n"), 400),
    ends("a chunk longer than its size", chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    ends("a chunk shorter than its size", chunked(b"5\r\nabc\r\n0\r\n\r\n"), 400),
    ends("LF in chunks", chunked(b"3\nabc\n0\n\n"), 400),
    ends("chunks without an end", chunked(chunks(BODY, end=b"")), 408),
    ends("another coding", post(b"transfer-encoding: gzip", body=b""), 400),
    ends("identity as a coding", post(b"transfer-encoding: identity", body=b""), 400),
    ends("gzip in chunks", post(b"transfer-encoding: gzip, chunked", body=chunks(BODY)), 400),
    ends("chunks in gzip", post(b"transfer-encoding: chunked, gzip", body=chunks(BODY)), 400),
    ends("chunked twice", post(b"transfer-encoding: chunked, chunked", body=chunks(BODY)), 400),
    ends("two codings", chunked(chunks(BODY), b"transfer-encoding: chunked"), 400),
    ends("a coding spelt wrong", post(b"transfer-encoding: xchunked", body=chunks(BODY)), 400),
    ends("a coding with a tab", post(b"transfer-encoding: \x0bchunked", body=chunks(BODY)), 400),
    stays("a coding in capitals", post(b"Transfer-Encoding: CHUNKED", body=chunks(BODY)), 200),
    stays("a body of the largest size",
          sized(body=BODY + b" " * (MAX_BODY_SIZE - len(BODY))), 200),
    stays("a body larger by a byte", sized(body=b" " * (MAX_BODY_SIZE + 1)), 413),
    stays("chunks of more than the largest size",
          chunked(chunks(*[b" " * 65_536] * (MAX_BODY_SIZE // 65_536 + 1))), 413),
    stays("a gzipped body", sized(b"content-encoding: gzip"), 415),
    stays("Expect: 100-continue", sized(b"expect: 100-continue"), 100, 200),
    stays("Expect: 100-continue, the body later",
          (sized(b"expect: 100-continue")[: -len(BODY)], BODY), 100, 200),
    ends("Expect: 100-continue of what is too large", post(
        b"expect: 100-continue", b"content-length: %d" % (MAX_BODY_SIZE + 1), body=b""), 413),
    ends("Expect: 100-continue without a key",
         sized(b"expect: 100-continue", body=b"").replace(AUTH, b"")
         .replace(b"content-length: 0", b"content-length: 9"), 401),
    ends("Expect: something else", sized(b"expect: 200-ok"), 417),
    ends("Expect: 100-continue of HTTP/1.0", sized(b"expect: 100-continue", version=b"1.0"), 200),
]  # fmt: skip

PIPELINES = [
    stays("two requests at once", LIVE + LIVE, 200, 200),
    stays("ten requests at once", LIVE * 10, *[200] * 10),
    ends("a thousand requests at once", LIVE * 1000, *[200] * 65, 400),
    stays("bodies at once", sized() + LIVE + sized() + get(MODELS), 200, 200, 200, 401),
    stays("HEAD among others", LIVE + get(b"/health/live", method=b"HEAD") + LIVE, 200, 200, 200,
          methods=("GET", "HEAD", "GET")),
    ends("a request behind the last one", get(b"/health/live", b"connection: close") + LIVE, 200),
    ends("garbage behind a request", LIVE + b"garbage\r\n\r\n", 200, 400),
    ends("garbage behind the last one", get(b"/health/live", b"connection: close") + b"x y z", 200),
    ends("half a request behind a whole one", LIVE + LIVE[:-5], 200, 408),
    ends("a bad body behind a request", LIVE + chunked(b"zz\r\n"), 200, 400),
    ends("a large body behind a stream", sized(
        body=BODY.replace(b"{", b'{"stream":true,')) + sized(body=b" " * 200_000), 200, 400),
    ends("a request hidden in a length", chunked(b"0\r\n\r\n" + LIVE, b"content-length: 5"), 400),
]  # fmt: skip

DEADLINES = [
    ends("nothing", (), ),
    ends("empty lines alone", b"\r\n\r\n"),
    ends("half a method", b"GE", 408),
    ends("half a line", b"GET /health/li", 408),
    ends("half a header", LIVE[:-6], 408),
    ends("headers without an end", LIVE[:-2], 408),
    ends("no body", sized()[: -len(BODY)], 408),
    ends("half a body", sized()[:-5], 408),
    ends("half a size", chunked(b"3"), 408),
    ends("half a chunk", chunked(b"30\r\nabc"), 408),
    ends("no end of a trailer", chunked(chunks(BODY, end=b"0\r\na: b\r\n")), 408),
    ends("no other request", LIVE, 200),
]  # fmt: skip

INPUTS = [*KEYS, *PATHS, *METHODS, *VERSIONS, *HEADERS, *BODIES, *PIPELINES, *DEADLINES]
