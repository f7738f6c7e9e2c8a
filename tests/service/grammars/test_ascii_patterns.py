r"""`\d`, `\w` and `\s` are ASCII's, and whatever a pattern allows still matches the one sent."""

from __future__ import annotations

import re
import time

import pytest
from llguidance import LLMatcher

from service.grammars.ascii_patterns import with_ascii_classes
from service.grammars.limits import MAX_PATTERN_BYTES
from tests.service.grammars.byte_matcher import matches


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\d+", "[[:digit:]]+"),
        (r"\w\s?", "[[:word:]][[:space:]]?"),
        (r"[\d.]{2}", "[[:digit:].]{2}"),
        (r"[-\w]", "[-[:word:]]"),
        (r"[]\d]", "[][:digit:]]"),
        (r"[[:alpha:]\d]", "[[:alpha:][:digit:]]"),
        (r"[\d-]", "[[:digit:]-]"),
        (r"[\-\d]", r"[\-[:digit:]]"),
        (r"[\[\]\d]\d", r"[\[\][:digit:]][[:digit:]]"),
        # As they are: complements, what is escaped, and what would be read otherwise.
        *((same, same) for same in (r"[^\d]", r"\D\W\S", r"\\d", r"[\\d]", r"[a-z-\d]", "", "é[")),
        *((same, same) for same in (r"(?x) # [ \d", r"(?ix-u:\d)", r"[a[\d]]", r"[\w&&a]", "\\")),
    ],
)
def test_classes_are_ascii_where_that_narrows_them(pattern, expected):
    assert with_ascii_classes(pattern) == expected


@pytest.mark.parametrize(
    "pattern", [r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"[\d_]", r"[^\d_]", r"[\w-]", r"[\s\d]"]
)
def test_what_is_allowed_matches_in_either_reading(pattern):
    grammar = LLMatcher.grammar_from_regex(with_ascii_classes(pattern))
    for text in ("5", "٣", "a", "é", "_", "-", " ", "\u00a0", "\u3000", "\t", ".", "日"):
        allowed = matches(grammar, text)
        readings = [re.fullmatch(pattern, text, flags) is not None for flags in (0, re.ASCII)]
        assert allowed == all(readings), (pattern, text)


@pytest.mark.parametrize("part", ["[", "[a", "\\", "[\\d", r"\d", "[]", "[^", "(?", "[:"])
def test_any_pattern_takes_linear_time(part):
    begun = time.process_time()
    with_ascii_classes(part * (MAX_PATTERN_BYTES // len(part)))
    assert time.process_time() - begun < 0.2
