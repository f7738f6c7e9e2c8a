"""What the head of a request must be like."""

from __future__ import annotations

from typing import Any

import pytest

from service.server.refusals import Refusal
from service.server.request_head import RequestHead, read_head

HOST = (b"host", b"x")


def read(
    target: bytes = b"/",
    *headers: tuple[bytes, bytes],
    method: bytes = b"GET",
    version: str = "1.1",
    **more: Any,
) -> RequestHead:
    return read_head(method, target, version, headers or (HOST,), **more)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/a?b?c", "/a", b"b?c"),
        (b"/%76?%76", "/v", b"%76"),
        (b"//a", "//a", b""),
        (b"/a/../b", "/a/../b", b""),
        (b"http://x/a?b", "/a", b"b"),
        (b"HTTP://X", "/", b""),
        (b"https://x?b", "/", b"b"),
    ],
)
def test_a_target_is_a_path_or_an_url(target, path, query):
    head = read(target)
    assert (head.path, head.query) == (path, query)


@pytest.mark.parametrize(
    "target", [b"a", b"*", b"?a", b"/a#b", b"ftp://x/a", b"http:///a", b"http://y/", b""]
)
def test_any_other_target_is_refused(target):
    with pytest.raises(Refusal) as caught:
        read(target)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host",
    [b"x", b"x:80", b"a-b.example.org", b"1.2.3.4:5", b"[::1]", b"[::1]:80", b"", b"x_y", b"X"],
)
def test_a_host_is_a_name_or_an_address(host):
    assert read(b"/", (b"host", host)).path == "/"


@pytest.mark.parametrize(
    "host", [b"x/y", b"x?", b"x#", b"u@x", b"x y", b"\xff", b"x:y", b"[x", b"x:80:80", b"\\x"]
)
def test_any_other_host_is_refused(host):
    with pytest.raises(Refusal, match="no host"):
        read(b"/", (b"host", host))


def test_version_1_0_may_leave_its_host_out_and_neither_may_send_two():
    assert read(b"/", (b"a", b"b"), version="1.0").path == "/"
    with pytest.raises(Refusal, match="no Host"):
        read(b"/", (b"a", b"b"))
    for version in ("1.0", "1.1"):
        with pytest.raises(Refusal, match="more than one"):
            read(b"/", HOST, HOST, version=version)


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0"])
def test_other_versions_are_refused(version):
    with pytest.raises(Refusal) as caught:
        read(version=version)
    assert caught.value.status == 505


def test_a_body_is_told_by_its_length_or_by_chunks():
    assert not read().has_body
    assert not read(b"/", HOST, (b"content-length", b"0")).has_body
    sized, chunked = (b"content-length", b"12"), (b"transfer-encoding", b"Chunked")
    assert read(b"/", HOST, sized).framing().endswith(b"content-length: 12\r\n\r\n")
    assert read(b"/", HOST, chunked).framing().endswith(b"transfer-encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked, chunked", b"", b"x"])
def test_any_coding_but_chunked_is_refused(coding):
    with pytest.raises(Refusal, match="chunked"):
        read(b"/", HOST, (b"transfer-encoding", coding))


def test_version_1_0_has_no_coding():
    with pytest.raises(Refusal, match="Content-Length"):
        read(b"/", HOST, (b"transfer-encoding", b"chunked"), version="1.0")


def test_only_100_continue_may_be_expected_and_1_0_expects_nothing():
    assert read(b"/", HOST, (b"expect", b"100-Continue")).expects_continue
    assert not read(b"/", HOST, (b"expect", b"100-continue"), version="1.0").expects_continue
    with pytest.raises(Refusal) as caught:
        read(b"/", HOST, (b"expect", b"x"))
    assert caught.value.status == 417


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/api/v1/models", "/v1/models"),
        (b"/v1/models", "/v1/models"),
        (b"/api", "/"),
        (b"/api/", "/"),
        (b"/apis", "/apis"),
        (b"/api/api/x", "/api/x"),
        (b"/api/admin/models", "/admin/models"),
    ],
)
def test_what_a_proxy_puts_before_a_path_is_taken_off_once(target, path):
    assert read(target, root_path="/api").path == path


def test_a_proxy_is_no_business_of_a_tunnel():
    with pytest.raises(Refusal) as caught:
        read(b"x:443", method=b"CONNECT")
    assert caught.value.status == 405
