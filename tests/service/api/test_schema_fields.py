"""Schemas, told in words."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from service.api.schema_fields import FieldRow, SchemaReader


class Part(BaseModel):
    """A part of a text."""

    type: Literal["text"]
    text: str = Field(max_length=10, description="What it says.")


class Turn(BaseModel):
    role: Literal["user", "assistant"] = Field(description="Whose.")
    content: str | list[Part] | None = None


class Tree(BaseModel):
    children: list[Tree] = []


class Everything(BaseModel):
    turns: list[Turn] = Field(min_length=1, description="The dialogue.")
    bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    share: float | None = Field(None, gt=0, le=1, description="A share.")
    count: int = Field(5, ge=0, le=2**31 - 1)
    stop: str | list[str] | None = None
    flag: bool | None = None
    ids: list[int | list[int]] = []
    anything: object = None
    part: Part | None = Field(None, description="Of its own.")
    name: str = Field("x", min_length=1, max_length=64, pattern="^[a-z]+$")


def rows_of(model: type[BaseModel]) -> dict[str, FieldRow]:
    schema = model.model_json_schema()
    return {row.path: row for row in SchemaReader(schema.get("$defs", {})).rows(schema)}


ROWS = rows_of(Everything)


@pytest.mark.parametrize(
    ("path", "kind", "bounds", "default"),
    [
        ("turns", "list of objects", "at least 1 items", "required"),
        ("turns[].role", '"user" or "assistant"', "", "required"),
        ("turns[].content", "string or list of objects", "", ""),
        ("turns[].content[].text", "string", "at most 10 characters", "required"),
        ("turns[].content[].type", '"text"', "", "required"),
        ("bias", "object of numbers", "", "{}"),
        ("share", "number", "> 0, ≤ 1", ""),
        ("count", "integer", "≥ 0, ≤ 2147483647", "5"),
        ("stop", "string or list of strings", "", ""),
        ("flag", "boolean", "", ""),
        ("ids", "list of integers or lists of integers", "", "[]"),
        ("anything", "anything", "", ""),
        ("part", "object", "", ""),
        ("part.text", "string", "at most 10 characters", "required"),
        ("name", "string", "1 to 64 characters, as ^[a-z]+$", '"x"'),
    ],
)
def test_field_is_told(path, kind, bounds, default):
    row = ROWS[path]
    assert (row.type, row.bounds, row.default) == (kind, bounds, default)


def test_every_field_is_told_and_in_its_order():
    assert set(Everything.model_fields) <= set(ROWS)
    assert list(ROWS)[:3] == ["turns", "turns[].role", "turns[].content"]


def test_description_is_the_fields_own_else_its_models():
    assert ROWS["part"].description == "Of its own."
    assert ROWS["turns"].description == "The dialogue."


def test_schema_that_holds_itself_ends():
    assert 2 < len(rows_of(Tree)) < 12


def test_list_at_the_top_is_told_as_its_items():
    schema = Part.model_json_schema()
    rows = SchemaReader({}).rows({"type": "array", "items": schema})
    assert [row.path for row in rows] == ["type", "text"]
