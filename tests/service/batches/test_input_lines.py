from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from service.batches.input_lines import (
    MAX_CUSTOM_ID,
    MAX_FAULTS,
    InputRules,
    read_body,
    read_lines,
)
from tests.service.kept_batches import COMPLETIONS, jsonl, line

if TYPE_CHECKING:
    from pathlib import Path

    from service.batches.records import LineFault, LineRecord

RULES = InputRules(endpoint=COMPLETIONS, max_lines=100, max_body_bytes=1000)


@pytest.fixture
def read(tmp_path: Path):
    def write_and_read(content: bytes) -> tuple[list[LineRecord], list[LineFault]]:
        (tmp_path / "file").write_bytes(content)
        return read_lines(tmp_path / "file", RULES)

    return write_and_read


def test_each_line_is_found_again_by_where_it_lies(read, tmp_path):
    bodies = [{"prompt": "é\u2028ü" * number, "max_tokens": number} for number in range(1, 4)]
    content = b"\n".join(jsonl(line(f"r{each['max_tokens']}", **each)) for each in bodies)
    found, faults = read(content + b"  \n\n")
    assert faults == []
    assert [each.custom_id for each in found] == ["r1", "r2", "r3"]
    assert [each.number for each in found] == [1, 3, 5]  # blank ones count as lines
    assert [json.loads(read_body(tmp_path / "file", each)) for each in found] == bodies


def test_a_last_line_without_its_end_counts(read):
    found, faults = read(jsonl(line("a")) + jsonl(line("b")).rstrip())
    assert [each.custom_id for each in found] == ["a", "b"]
    assert not faults


def test_a_body_is_kept_as_it_was_written(read, tmp_path):
    """Names that stand twice, and numbers of any form, are for whoever runs it to judge."""
    body = '{"prompt": "a", "prompt" : "b", "temperature": 1e0}'
    text = f'{{"custom_id": "a", "method": "POST", "url": "{COMPLETIONS}", "body": {body}}}'
    (found,), _ = read(text.encode())
    assert read_body(tmp_path / "file", found).decode() == body


def wrong(**changes: Any) -> bytes:
    made = {**line("x"), **changes}
    return jsonl({name: value for name, value in made.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"nonsense\n", "invalid_json_line", None),
        (b"[1, 2]\n", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}\n', "invalid_json_line", None),
        (b'{"custom_id": "a", "body": ' + b"[" * 20_000 + b"\n", "line_too_long", None),
        (b'{"custom_id": "a", "body": ' + b"[" * 5000 + b"\n", "invalid_json_line", None),
        (wrong(custom_id=...), "invalid_json_line", None),
        (wrong(custom_id=5), "invalid_json_line", None),
        (wrong(custom_id=""), "invalid_custom_id", "custom_id"),
        (wrong(custom_id="a" * (MAX_CUSTOM_ID + 1)), "invalid_custom_id", "custom_id"),
        (wrong(method="GET"), "invalid_method", "method"),
        (wrong(method=...), "invalid_json_line", None),
        (wrong(url="/v1/chat/completions"), "mismatched_url", "url"),
        (wrong(url="/admin/keys"), "mismatched_url", "url"),
        (wrong(body="text"), "invalid_json_line", None),
        (wrong(body=[1]), "invalid_json_line", None),
        (wrong(body=None), "invalid_json_line", None),
        (wrong(body={"prompt": "a" * 1000}), "body_too_large", "body"),
        (wrong(body={"stream": True}), "stream_not_supported", "body.stream"),
        (wrong(more=1), "invalid_json_line", None),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(read, text, code, param):
    _, faults = read(jsonl(line("a")) + text)
    (fault,) = faults
    assert (fault.line, fault.code, fault.param) == (2, code, param)
    assert len(fault.message) <= 200


def test_a_custom_id_that_stands_twice_names_the_first_line_with_it(read):
    _, (fault,) = read(jsonl(line("a"), line("b"), line("a")))
    assert (fault.line, fault.code) == (3, "duplicate_custom_id")
    assert "line 1" in fault.message


def test_a_stream_that_is_off_is_none(read):
    found, faults = read(jsonl(line("a", stream=False), line("b", stream=None)))
    assert (len(found), faults) == (2, [])


def test_no_more_faults_are_told_than_anybody_reads(read):
    _, faults = read(b"nonsense\n" * 10_000)
    assert len(faults) == MAX_FAULTS


def test_too_many_lines_and_none_at_all(read):
    _, faults = read(jsonl(*(line(str(number)) for number in range(101))))
    assert [(each.line, each.code) for each in faults] == [(101, "too_many_lines")]
    for content in (b"", b"\n \n"):
        _, (fault,) = read(content)
        assert (fault.line, fault.code) == (None, "empty_file")
