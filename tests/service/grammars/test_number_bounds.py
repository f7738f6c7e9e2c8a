"""Bounds that lie between doubles, or beyond 64 bits, are moved inwards or refused by name."""

from __future__ import annotations

import time

import pytest

from service.grammars.errors import InvalidGrammarError
from service.grammars.json_schema import schema_grammar
from service.grammars.number_bounds import EXACT, LIMIT, MAX_STEP, with_followed_bounds

WHOLE = {"type": "integer"}
EITHER = [WHOLE, {"type": "number"}]


@pytest.mark.parametrize(
    "bounds",
    [
        {"maximum": -(2**63)},
        {"maximum": -(10**19)},
        {"minimum": 2**63 - 1},
        {"minimum": 10**19},
        {"minimum": 1e19},
        {"exclusiveMinimum": LIMIT},
        {"exclusiveMaximum": -LIMIT},
        {"exclusiveMaximum": True, "maximum": -LIMIT},
        {"minimum": -1e300, "maximum": -1e30},
        {"minimum": 10**400},
        {"const": 2**63},
        {"const": -(10**400)},
        {"enum": [1, -(10**19)]},
        {"const": {"a": [EXACT + 1]}},
        {"const": 123456789012345696.0},
        {"minimum": EXACT + 1, "maximum": EXACT + 1},
        {"multipleOf": 1_000_003},
        {"multipleOf": 0},
        {"multipleOf": 1e300},
        {"multipleOf": 1e-300},
        {"multipleOf": 5e-324},
        {"multipleOf": 0.07},
        {"multipleOf": 3001, "minimum": 12_345},
        {"multipleOf": 997, "minimum": 0, "maximum": 10**15},
        {"allOf": [{"multipleOf": 65_536}, {"multipleOf": 3 * 65_536}]},
        {"allOf": [{"multipleOf": 9_973}, {"multipleOf": 9_967}]},
    ],
)
@pytest.mark.parametrize("place", ["at the top", "beside others", "joined"])
def test_what_cannot_be_followed_is_refused_by_name(bounds, place):
    schema = {**WHOLE, **bounds}
    if place == "beside others":
        schema = {"properties": {"a": {"items": schema}}}
    elif place == "joined":
        schema = {"allOf": [WHOLE, bounds]}
    with pytest.raises(InvalidGrammarError) as refused:
        schema_grammar(schema)
    assert any(name in str(refused.value) for name in [*bounds, "multipleOf", "two bounds"])
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize(
    ("bounds", "allowed", "others"),
    [
        ({"maximum": 999_999_999_999_999_999}, [5, 10**18 - 128], [10**18, 10**18 - 1]),
        ({"minimum": EXACT + 1}, [EXACT + 2, 10**17], [EXACT, EXACT + 1, 0, -5]),
        ({"exclusiveMinimum": EXACT + 2}, [EXACT + 4], [EXACT + 2, EXACT]),
        ({"exclusiveMaximum": 10**18}, [10**18 - 128], [10**18]),
        ({"maximum": -(10**18)}, [-(10**18)], [-5, 10**18, -(10**18) + 1]),
        ({"maximum": 2**64 - 1, "minimum": 0}, [0, 10**18, LIMIT], [2**63, 2**64, -1]),
        ({"minimum": -(10**30), "maximum": 5}, [-(10**17), 5], [-(2**63) - 1, 6]),
        ({"minimum": 2 * 10**18, "maximum": 3 * 10**18}, [2 * 10**18 + 7], [2 * 10**18 - 1]),
        ({"minimum": EXACT + 1, "exclusiveMinimum": 5}, [EXACT + 2], [EXACT, 6]),
        ({"minimum": -(10**18), "exclusiveMinimum": 5}, [6], [5, -(10**18)]),
        ({"maximum": 10**18, "exclusiveMaximum": 5}, [4], [5, 10**18]),
        ({"exclusiveMinimum": True, "minimum": 2**60, "maximum": 2**61}, [2**60 + 256], [2**60]),
    ],
)
def test_far_bounds_are_followed_to_the_last_digit(accepts, kind, bounds, allowed, others):
    for schema in ({**kind, **bounds}, {"allOf": [kind, bounds]}):
        assert [number for number in allowed if not accepts(schema, str(number))] == []
        assert [number for number in others if accepts(schema, str(number))] == []


@pytest.mark.parametrize("number", [10**18 + 128, -(2**60), EXACT, 2**62, 0.1, 1e17])
def test_listed_numbers_are_written_as_they_are(accepts, number):
    written = str(int(number)) if number != 0.1 else "0.1"
    assert accepts({"const": number}, written)
    assert accepts({"enum": ["x", number]}, written)


def test_bounds_of_what_is_no_number_do_not_matter():
    schema = {"type": "string", "minimum": 10**30, "multipleOf": 10**30}
    assert with_followed_bounds(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {**WHOLE, "minimum": -EXACT, "exclusiveMaximum": EXACT, "multipleOf": 5},
        {"type": "number", "minimum": 0.1, "maximum": 1.5, "multipleOf": 0.01},
        {"type": "number", "multipleOf": 1e-9},
        {**WHOLE, "multipleOf": 9_973, "minimum": 0, "maximum": 100_000},
        {"properties": {"a": {"multipleOf": 0.01}, "b": {"multipleOf": 1_000}}, "minimum": 5},
    ],
)
def test_near_bounds_are_left_as_they_are(schema):
    assert with_followed_bounds(schema) == schema


@pytest.mark.parametrize("step", [3, 256, 997, 4_096, 9_973, MAX_STEP])
def test_the_largest_steps_are_followed_within_moments(accepts, step):
    begun = time.process_time()
    assert accepts({**WHOLE, "multipleOf": step}, str(10**17 // step * step))
    assert not accepts({**WHOLE, "multipleOf": step}, str(10**17 // step * step + 1))
    assert time.process_time() - begun < 0.5


def test_many_steps_are_told_apart_in_time():
    parts = [{"multipleOf": step / 1_000} for step in range(1, 5_000)]
    begun = time.process_time()
    with pytest.raises(InvalidGrammarError):
        with_followed_bounds({"allOf": parts})
    assert time.process_time() - begun < 1
