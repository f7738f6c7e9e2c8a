"""What came of forms is remembered, the latest of them."""

from __future__ import annotations

from service.grammars.findings import Finding, Findings


def test_what_came_of_a_form_is_known_and_of_others_nothing():
    known = Findings()
    assert known.remember("good", None) == Finding(None)
    known.remember("bad", "too long")
    assert known.get("good") == Finding(None)
    assert known.get("bad") == Finding("too long")
    assert known.get("other") is None


def test_those_asked_for_longest_ago_are_forgotten():
    known = Findings(max_known=2)
    for form in ("a", "b"):
        known.remember(form, None)
    assert known.get("a") is not None
    known.remember("c", None)
    assert [form for form in "abc" if known.get(form) is not None] == ["a", "c"]
