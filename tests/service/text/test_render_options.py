"""What a request says beside its messages: what is let through, and what a refusal tells."""

from __future__ import annotations

import pytest

from service.text.errors import InvalidTemplateOptionsError
from service.text.render_options import (
    MAX_KWARG_CHARS,
    checked_documents,
    checked_kwargs,
    kwargs_among,
)

TAKEN = frozenset({"enable_thinking", "date"})


def test_a_request_may_set_what_the_template_reads_and_nobody_else_fills():
    variables = {"enable_thinking", "messages", "tools", "documents", "add_generation_prompt"}
    reserved = {"eos_token", "pad_token", "image_token", "raise_exception", "loop", "kwargs"}
    special_tokens = {"image_token": "<image>"}
    assert kwargs_among(frozenset(variables | reserved), special_tokens) == {"enable_thinking"}


@pytest.mark.parametrize("value", [True, False, "off", "", 5, -0.5, 2**53, "x" * MAX_KWARG_CHARS])
def test_booleans_strings_and_numbers_are_taken(value):
    assert checked_kwargs({"date": value}, TAKEN) == {"date": value}


def test_null_is_absent():
    assert checked_kwargs({"date": None}, TAKEN) == {}
    assert checked_documents(None, are_read=False) is None
    assert checked_documents([], are_read=False) is None


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"thinking": True}, "has 'thinking', which .* does not take; it takes: date, enable_th"),
        ({"messages": "x"}, "has 'messages'"),
        ({"x" * 999: 1}, "has 'x{50}', which"),
        ({"date": ["x"]}, r"chat_template_kwargs\.date is of type list; send a boolean"),
        ({"date": {}}, "of type dict"),
        ({"date": "x" * (MAX_KWARG_CHARS + 1)}, "has 4097 characters; at most 4096"),
        ({"date": 10**400}, "out of range"),
        ({"date": float("nan")}, "out of range"),
        ({"date": float("-inf")}, "out of range"),
        ({"date": "\ud800"}, r"chat_template_kwargs\.date has a lone surrogate"),
    ],
)
def test_other_arguments_are_refused_with_their_name(kwargs, told):
    with pytest.raises(InvalidTemplateOptionsError, match=told) as error:
        checked_kwargs(kwargs, TAKEN)
    assert error.value.param == "chat_template_kwargs"


def test_a_template_that_takes_nothing_says_so():
    with pytest.raises(InvalidTemplateOptionsError, match="it takes: none"):
        checked_kwargs({"a": 1}, frozenset())


def test_documents_are_objects_of_strings():
    documents = [{"title": "a", "text": "b"}, {}]
    assert checked_documents(documents, are_read=True) == documents


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        (["text"], r"documents\[0\] is of type str; send an object"),
        ([{"text": "x"}, {"text": 5}], r"documents\[1\].text is of type int; send a string"),
        ([{"text": "\ud800"}], r"documents\[0\] has a lone surrogate"),
        ([{"\ud800": "x"}], r"documents\[0\] has a lone surrogate"),
    ],
)
def test_other_documents_are_refused_with_their_place(documents, told):
    with pytest.raises(InvalidTemplateOptionsError, match=told) as error:
        checked_documents(documents, are_read=True)
    assert error.value.param == "documents"


def test_documents_that_would_have_no_effect_are_refused():
    with pytest.raises(InvalidTemplateOptionsError, match="does not use them"):
        checked_documents([{"text": "x"}], are_read=False)
