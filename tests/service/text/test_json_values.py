"""JSON values of calls and schemas: their texts, their size, and what no template can be given."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.json_values import (
    fault_of,
    marks_size,
    num_marks,
    read_object,
    texts_in,
    with_texts,
)

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
values = st.recursive(
    scalars | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(values)
def test_texts_are_those_that_can_be_changed(value):
    found = list(texts_in(value))
    assert list(texts_in(with_texts(value, lambda text: text + "!"))) == [t + "!" for t in found]
    assert with_texts(value, lambda text: text) == value


@given(values.filter(lambda value: "inf" not in json.dumps(value).lower()))
def test_an_indented_value_is_no_longer_than_four_times_what_is_counted(value):
    texts = sum(len(json.dumps(text, ensure_ascii=False)) - 2 for text in texts_in(value))
    assert len(json.dumps(value, indent=4, ensure_ascii=False)) <= 4 * marks_size(value) + texts


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans()))
def test_objects_are_read_as_they_were_written(value):
    assert read_object(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON: EOF"),
        ('{"a": NaN}', "is no JSON"),
        ('{"a": "\\ud800"}', "is no JSON"),
        ("[" * 5000 + "]" * 5000, "is no JSON: recursion limit"),
        ('{"a": ' + "1" * 5000 + "}", "is no JSON: number out of range"),
        ('{"a": ' + "1" * 400 + "}", "holds a number out of range"),
        ('{"a": [1e999]}', "holds a number out of range"),
        ("[]", "is JSON of type list, not an object"),
        ('"{}"', "is JSON of type string, not an object"),
        ("null", "is JSON of type null, not an object"),
        ("true", "is JSON of type boolean, not an object"),
        ("5", "is JSON of type number, not an object"),
    ],
)
def test_what_is_no_object_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        read_object(text)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": ["\ud800"]}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": float("nan")}, "out of range"),
        ([2**1024], "out of range"),
        ({"a": {1, 2}}, "holds a set, which is no JSON"),
    ],
)
def test_what_no_template_can_be_given_is_told(value, told):
    assert told in fault_of(value)


def test_ordinary_values_have_no_fault():
    assert fault_of({"a": [1, 0.5, True, None, "é", {"b": -(2**1000)}], "c": ()}) is None


def test_what_may_begin_a_value_is_counted():
    assert num_marks('{"a": [1, "x"], "b": {}}') == 13
    assert num_marks("") == 0
