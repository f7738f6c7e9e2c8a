"""Words of a schema that say nothing, and that the library would refuse by name or by type.

null counts as absent, wherever a keyword's own value is no value of JSON.
"""

from __future__ import annotations

import copy
from typing import Any

from service.grammars.schema_nodes import NO_SCHEMAS, nodes_of

# By keyword: what leaves a schema as it would be without it.
_NEUTRAL: dict[str, list[Any]] = {
    "uniqueItems": [False],
    "dependencies": [{}],
    "dependentRequired": [{}],
    "dependentSchemas": [{}],
    "propertyNames": [True, {}],
    "unevaluatedItems": [True, {}],
    "unevaluatedProperties": [True, {}],
}


def without_neutral_words(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that says the same in fewer words."""
    changed = copy.deepcopy(schema)
    for node in list(nodes_of(changed)):
        for keyword, value in list(node.items()):
            if keyword not in NO_SCHEMAS and (value is None or _is_neutral(keyword, value)):
                del node[keyword]
    return changed


def _is_neutral(keyword: str, value: Any) -> bool:
    # Python takes 0 for false.
    return any(type(value) is type(one) and value == one for one in _NEUTRAL.get(keyword, []))
