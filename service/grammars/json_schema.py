"""JSON schemas as grammars.

White space outside strings is fixed: one space behind each comma and colon, and none elsewhere, as
Python writes JSON. A weak model that may write as many line breaks as it likes writes nothing else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from llguidance import LLMatcher

from service.grammars.closed_objects import with_closed_objects
from service.grammars.errors import InvalidGrammarError
from service.grammars.integer_bounds import with_bounded_integers
from service.grammars.limits import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_PROPERTIES,
    MAX_SCHEMA_NODES,
    MAX_SOURCE_BYTES,
)
from service.grammars.neutral_words import without_neutral_words
from service.grammars.number_bounds import shown, with_followed_bounds
from service.grammars.refusals import in_words
from service.grammars.schema_nodes import may_be, nodes_of

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JsonSchema: TypeAlias = dict[str, Any] | bool

ANY_OBJECT: dict[str, Any] = {"type": "object"}
# In a schema the library would take its own settings from it.
_LIBRARY_SETTINGS = "x-guidance"
_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,  # what it cannot follow is refused by name
}


def schema_grammar(schema: JsonSchema) -> str:
    """Return a grammar of the texts that a schema allows. Raises InvalidGrammarError."""
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(followed_schema(schema)), overrides=_FORM
        )
    except ValueError as error:
        raise InvalidGrammarError(in_words(str(error))) from error


def followed_schema(schema: JsonSchema) -> dict[str, Any]:
    """Return a schema as the library is to follow it, with settings for that.

    Texts that follow it follow the one that was sent. Raises InvalidGrammarError.
    """
    _check_size(schema)
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    given = without_neutral_words(schema)
    given.pop(_LIBRARY_SETTINGS, None)
    _check_counts(given)
    given = with_closed_objects(given)
    given = with_bounded_integers(with_followed_bounds(given))
    return {**given, _LIBRARY_SETTINGS: _FORM}


def _check_counts(schema: dict[str, Any]) -> None:
    """Refuse objects that are to have several properties of any name.

    The library might write one name twice, and read as JSON that is one property.
    """
    for node in nodes_of(schema):
        count, required = node.get("minProperties"), node.get("required", [])
        if not isinstance(count, int) or not isinstance(required, list):
            continue
        num_any = count - len({name for name in required if isinstance(name, str)})
        if num_any > 1 and may_be("object", node):
            raise InvalidGrammarError(
                f"the JSON schema uses `minProperties` {shown(count)} with"
                f" {count - num_any} names in `required`; it can be at most one more"
            )


def _check_size(schema: object) -> None:
    """Refuse a schema that is too deep, large or full of values, before anybody reads it."""
    num_nodes = num_values = 0
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidGrammarError(
                f"the JSON schema has more than {MAX_DEPTH} levels; use $defs and $ref, or send a"
                " flatter one"
            )
        num_nodes += len(level)
        num_values += sum(_num_values(node) for node in level)
        if any(isinstance(node, dict) and len(node) > MAX_PROPERTIES for node in level):
            raise InvalidGrammarError(
                f"the JSON schema has more than {MAX_PROPERTIES} properties or definitions in one"
                " place; send fewer"
            )
        if num_nodes > MAX_SCHEMA_NODES:
            raise InvalidGrammarError(
                f"the JSON schema has more than {MAX_SCHEMA_NODES} parts; send a smaller one"
            )
        if num_values > MAX_CHOICES:
            raise InvalidGrammarError(
                f"the JSON schema lists more than {MAX_CHOICES} values of `enum`; send fewer"
            )
        level = [child for node in level for child in _children(node)]
    size = len(json.dumps(schema).encode())
    if size > MAX_SOURCE_BYTES:
        raise InvalidGrammarError(
            f"the JSON schema has {size} bytes; at most {MAX_SOURCE_BYTES} are taken"
        )


def _num_values(node: object) -> int:
    values = node.get("enum") if isinstance(node, dict) else None
    return len(values) if isinstance(values, list) else 0


def _children(node: object) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
