"""Lists that are too long are refused in one sentence, whatever they hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from service.api.list_lengths import FEW_MESSAGES, at_most, no_more_than_messages
from tests.service.fakes import LIMITS

FEW = replace(LIMITS, max_messages=3)
MANY = dict.fromkeys(map(str, range(1000)), "no number")


def refusal(kind: Any, value: object) -> str:
    """The one thing that is wrong; "" for none."""
    try:
        TypeAdapter(kind).validate_python(value, context=FEW)
    except ValidationError as error:
        (found,) = error.errors()
        return found["msg"]
    return ""


@pytest.mark.parametrize(
    ("kind", "few", "many"),
    [
        (Annotated[list[int], at_most(2, "tools")], [1, 2], ["no number"] * 1000),
        (
            Annotated[dict[str, int], at_most(2, "tools")],
            {"a": 1},
            {str(i): "" for i in range(1000)},
        ),
        (Annotated[list[int], no_more_than_messages("tools")], [1, 2, 3], ["no number"] * 1000),
        (Annotated[list[int], FEW_MESSAGES], [1, 2, 3], ["no number"] * 1000),
    ],
)
def test_too_many_are_told_by_their_number_alone(kind, few, many):
    assert refusal(kind, few) == ""
    assert "has 1000 " in refusal(kind, many)


def test_what_is_no_list_is_left_to_its_type():
    for check in (at_most(2, "tools"), no_more_than_messages("tools"), FEW_MESSAGES):
        assert refusal(Annotated[str, check], "a long text") == ""


def test_a_dialogue_needs_a_message_and_other_lists_may_be_empty():
    assert "at least one message" in refusal(Annotated[list[int], FEW_MESSAGES], [])
    assert refusal(Annotated[list[int], no_more_than_messages("calls")], []) == ""
