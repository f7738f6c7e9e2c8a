"""Forms, however they are cut, and whatever is wrong with them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.form_bodies import MAX_FIELD_BYTES, MAX_PARTS, FormReader
from service.errors import InvalidFormError

BOUNDARY = b"-=boundary=-"


def part(name: str, content: bytes, *more: str, filename: str | None = None) -> bytes:
    told = f'Content-Disposition: form-data; name="{name}"'
    told += "" if filename is None else f'; filename="{filename}"'
    head = "\r\n".join([told, *more]).encode()
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def read(*pieces: bytes):
    reader = FormReader(BOUNDARY)
    content = b"".join([reader.push(piece) for piece in pieces])
    return content, reader.finish()


GOOD = form(
    part("purpose", b"batch"),
    part("file", b"{}\r\n--" + BOUNDARY[:-1] + b"\n\r\n-", filename="a.jsonl"),
    part("expires_after[seconds]", b"3600"),
)


def test_a_form_is_read_whole():
    content, told = read(GOOD)
    assert content == b"{}\r\n--" + BOUNDARY[:-1] + b"\n\r\n-"
    assert told.filename == "a.jsonl"
    assert told.fields == {"purpose": "batch", "expires_after[seconds]": "3600"}


@given(st.lists(st.integers(0, len(GOOD)), max_size=8))
def test_a_form_says_the_same_however_it_is_cut(cuts: list[int]):
    places = [0, *sorted(cuts), len(GOOD)]
    pieces = [GOOD[a:b] for a, b in itertools.pairwise(places)]
    assert read(*pieces) == read(GOOD)


def test_a_form_says_the_same_byte_by_byte():
    assert read(*(GOOD[i : i + 1] for i in range(len(GOOD)))) == read(GOOD)


@given(st.binary(max_size=300))
def test_any_content_comes_through(content: bytes):
    whole = form(part("file", content, filename="a"))
    if b"\r\n--" + BOUNDARY not in b"\r\n" + content:
        assert read(whole)[0] == content


@given(st.binary(max_size=200))
def test_nonsense_is_refused_in_words(content: bytes):
    with pytest.raises(InvalidFormError):
        read(content)


@given(st.integers(0, len(GOOD) - 5))
def test_a_form_that_is_cut_off_is_refused(length: int):
    with pytest.raises(InvalidFormError):
        read(GOOD[:length])


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([part("purpose", b"x" * (MAX_FIELD_BYTES + 1))], "more than"),
        ([part(f"n{number}", b"x") for number in range(MAX_PARTS + 1)], "parts"),
        ([part("purpose", b"a"), part("purpose", b"b")], "twice"),
        ([part("file", b"a", filename="a"), part("file", b"b", filename="b")], "twice"),
        ([part("purpose", b"\xff\xfe")], "UTF-8"),
        ([part("file", b"a", "Content-Transfer-Encoding: base64", filename="a")], "encoded"),
        ([part("file", b"a", "X-Long: " + "x" * 10_000, filename="a")], "read"),
        ([part("file", b"a", *(f"X-{i}: x" for i in range(20)), filename="a")], "read"),
        ([b"--" + BOUNDARY + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n"], "name"),
        ([b"--" + BOUNDARY + b"\r\nContent-Disposition: attachment\r\n\r\nx\r\n"], "name"),
        ([b"--" + BOUNDARY + b"\r\n: nothing\r\n\r\nx\r\n"], "read"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(parts: list[bytes], match: str):
    with pytest.raises(InvalidFormError, match=match):
        read(form(*parts))


@pytest.mark.parametrize("boundary", [b"x" * 1000])
def test_a_boundary_that_is_none_is_refused(boundary: bytes):
    with pytest.raises(InvalidFormError):
        FormReader(boundary)


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\Users\\\\me\\\\a.jsonl", "a.jsonl"),
        ("a\tbc.jsonl", "abc.jsonl"),
        ("/", "file"),
        ("", "file"),
        ("é" * 500, "é" * 255),
    ],
)
def test_a_filename_is_its_last_part_made_printable(given_name: str, shown: str):
    _, told = read(form(part("file", b"", filename=given_name)))
    assert told.filename == shown


def test_what_stands_behind_the_last_boundary_means_nothing():
    assert read(GOOD + b"epilogue", b"and more") == read(GOOD)
