"""Schemas within grammars are found where they are meant, and nowhere else."""

from __future__ import annotations

import time

import pytest

from service.grammars.inline_schemas import with_schemas_followed


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ('start: %json {"a": "}"} | "x"', 'start: %json {"b": 1} | "x"'),
        (
            'start: "%json {" // %json 5\n  %json\n{}',
            'start: "%json {" // %json 5\n  %json {"b": 1}',
        ),
        ('start: /%json "/ %json true', 'start: /%json "/ %json {"b": 1}'),
        ('start: "\\"%json {" # %json', 'start: "\\"%json {" # %json'),
        ('x: %regex {"a": "%json {"}', 'x: %regex{"a": "%json {"}'),
    ],
)
def test_each_schema_is_replaced_and_nothing_else(grammar, expected):
    assert with_schemas_followed(grammar, lambda schema: {"b": 1}) == expected


@pytest.mark.parametrize("piece", ['\\"', "\\/", '"', "/", "%json {} ", "\\\n"])
@pytest.mark.parametrize("begin", ['"', "/", ""])
def test_what_does_not_end_is_read_in_no_time(begin, piece):
    grammar = begin + piece * (120_000 // len(piece))
    begun = time.process_time()
    assert with_schemas_followed(grammar, lambda schema: schema)
    assert time.process_time() - begun < 1
