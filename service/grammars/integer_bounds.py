"""Whole numbers that end: a weak model writes digits as long as it may.

What no schema bounds is bounded to 18 digits, which every reader of JSON can hold in 64 bits, or to
64 bits where what is told of a number leaves little room there. Texts that follow such a schema
follow the one that was sent, too. Left as they are:

- numbers that may have fractions, also where nothing says what a value is: 6.02e23 is one, and the
  library writes no exponent of a number between two bounds;
- multiples of more than `MAX_STEP`: together with bounds they take more work than masks may.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from service.grammars.number_bounds import LIMIT, LOWER, UPPER, numbers, numbers_in
from service.grammars.schema_nodes import LISTED, JoinedNodes, nodes_of, types_of

if TYPE_CHECKING:
    from collections.abc import Iterable

# The last of 18 digits that is the same as a double, in which the library counts: it would take
# 10**18 - 1 for 10**18, and write 19 digits.
MOST = 10**18 - 128
MAX_STEP = 256  # of `multipleOf`; where tokens have three digits, 499 takes too much work
_FAR = MOST // 2  # from here on what is told of a number leaves little room below MOST


def with_bounded_integers(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose whole numbers have bounds."""
    changed = copy.deepcopy(schema)
    nodes = list(nodes_of(changed))
    joined_nodes = JoinedNodes(changed)
    joined = [node for node in nodes if node in joined_nodes]
    room, steps = _room(joined), _steps(joined)
    for node in nodes:
        if node not in joined_nodes:
            node |= _missing_bounds(node, _room([node]), _steps([node]))
        else:
            node |= _missing_bounds(node, room, steps)
    return changed


def _missing_bounds(node: dict[str, Any], room: int, steps: int) -> dict[str, int]:
    if not _is_whole(node) or node.keys() & set(LISTED) or steps > MAX_STEP:
        return {}
    bounds = {}
    if not node.keys() & set(LOWER):
        bounds["minimum"] = -room
    if not node.keys() & set(UPPER):
        bounds["maximum"] = room
    return bounds


def _is_whole(node: dict[str, Any]) -> bool:
    """Whether the numbers that a node allows, among other values, are whole ones."""
    kinds = types_of(node, silence="number")
    if "number" not in kinds:
        return "integer" in kinds
    return any(_fraction(step).denominator == 1 for step in numbers(node, ("multipleOf",)))


def _room(nodes: Iterable[dict[str, Any]]) -> int:
    """Return how far whole numbers may go: as far as leaves room for what nodes tell of them."""
    told = (
        abs(value)
        for node in nodes
        for value in [
            *numbers(node, (*LOWER, *UPPER)),
            *(one for keyword in LISTED for one in numbers_in(node.get(keyword))),
        ]
    )
    return LIMIT if any(value > _FAR for value in told) else MOST


def _steps(nodes: Iterable[dict[str, Any]]) -> int:
    """Return how far apart whole numbers are that follow all nodes; if too far, about."""
    least = 1
    for node in nodes:
        for step in numbers(node, ("multipleOf",)):
            least = math.lcm(least, _fraction(step).numerator)
            if least > MAX_STEP:
                return least
    return least


def _fraction(number: float) -> Fraction:
    # As it was written: 0.1 is a tenth.
    return Fraction(number if isinstance(number, int) else str(number))
