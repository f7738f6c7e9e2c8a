from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from service.batches.input_lines import (
    BOM,
    MAX_CUSTOM_ID,
    MAX_FAULTS,
    InputRules,
    read_lines,
    read_request,
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
    assert [json.loads(read_request(tmp_path / "file", each)[0]) for each in found] == bodies


def test_a_last_line_without_its_end_counts(read):
    found, faults = read(jsonl(line("a")) + jsonl(line("b")).rstrip())
    assert [each.custom_id for each in found] == ["a", "b"]
    assert not faults


def test_a_body_is_kept_as_it_was_written(read, tmp_path):
    """Names that stand twice, and numbers of any form, are for whoever runs it to judge."""
    body = '{"prompt": "a", "prompt" : "b", "temperature": 1e0}'
    text = f'{{"custom_id": "a", "method": "POST", "url": "{COMPLETIONS}", "body": {body}}}'
    (found,), _ = read(text.encode())
    assert read_request(tmp_path / "file", found) == (body.encode(), [])


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
        (wrong(body={"prompt": "?"}).replace(b"?", b"\xff"), "invalid_json_line", None),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(read, text, code, param):
    _, faults = read(jsonl(line("a")) + text)
    (fault,) = faults
    assert (fault.line, fault.code, fault.param) == (2, code, param)
    assert len(fault.message) <= 200


@pytest.mark.parametrize("content", [jsonl(line("a"), line("b")), b"\n" + jsonl(line("a"))])
def test_a_byte_order_mark_is_no_part_of_the_first_line(read, tmp_path, content):
    found, faults = read(BOM + content)
    assert faults == []
    for each in found:
        assert json.loads(read_request(tmp_path / "file", each)[0])["prompt"] == "hi"
    assert read(content + BOM + content)[1] != [], "only at the beginning of a file"


def test_a_line_that_is_not_utf_8_says_where(read):
    text = wrong(body={"prompt": "?"}).replace(b"?", b"\xff")
    _, (fault,) = read(text)
    where = text.index(b"\xff")
    assert fault.message == f"not UTF-8 (byte {where} of the line); save the file as UTF-8"
    _, faults = read(jsonl(line("b")).decode().encode("utf-16"))
    assert faults[0].message == "not UTF-8 (byte 0 of the line); save the file as UTF-8"


def test_what_means_nothing_beside_a_body_is_named_and_no_fault(read, tmp_path):
    odd = {**line("a"), "priority": 3, "id": None, "x" * 100: 1, **dict.fromkeys("abcdefghij", 0)}
    (found,), faults = read(jsonl(odd))
    assert faults == []
    _, unknown = read_request(tmp_path / "file", found)
    assert unknown[:2] == ["line.priority", "line." + "x" * 64]
    assert (len(unknown), unknown[-1]) == (11, "and 2 more")


def test_it_is_refused_by_name_where_that_is_the_policy(tmp_path):
    (tmp_path / "file").write_bytes(jsonl({**line("a"), "priority": 3, "id": None}))
    strict = replace(RULES, refuses_unknown=True)
    _, (fault,) = read_lines(tmp_path / "file", strict)
    assert (fault.line, fault.code) == (1, "unknown_parameter")
    assert fault.message == "line.priority: no effect here; leave it out"


def test_a_name_that_is_no_text_is_no_crash(read, tmp_path):
    text = jsonl(line("a")).replace(b'{"custom', b'{"\\ud800": 1, "custom', 1)
    found, faults = read(text)
    for each in found:
        json.dumps(read_request(tmp_path / "file", each)[1]).encode()
    assert len(found) + len(faults) == 1


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
