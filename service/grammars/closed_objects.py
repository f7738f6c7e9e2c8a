"""Objects that end: what a schema lists of an object is all there is, unless it says more of it.

By itself `properties` allows any others beside them, and a weak model that may make up further ones
goes on making them up. Texts that follow the closed schema follow the one that was sent, too.

An object is left open where another schema may speak of it, too: what is not listed here is listed
there.
"""

from __future__ import annotations

import copy
from typing import Any

from service.grammars.schema_nodes import JoinedNodes, nodes_of

# Beside one of these an object's own `properties` are not all that it may have.
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
)


def with_closed_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no properties but those it lists, where it lists any."""
    changed = copy.deepcopy(schema)
    joined = JoinedNodes(changed)
    for node in list(nodes_of(changed)):
        if _lists_all(node) and node not in joined:
            node["additionalProperties"] = False
    return changed


def _lists_all(node: dict[str, Any]) -> bool:
    """Whether a node lists properties, and neither names nor allows others itself."""
    properties = node.get("properties")
    if not isinstance(properties, dict) or _OPEN & node.keys():
        return False
    required = node.get("required", [])
    return isinstance(required, list) and all(
        isinstance(name, str) and name in properties for name in required
    )
