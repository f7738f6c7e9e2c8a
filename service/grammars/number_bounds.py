"""Bounds of numbers as they can be followed: in doubles, and within 64 bits.

The library counts in doubles, and holds whole numbers in 64 bits. What lies between two doubles is
moved to the one within, so that no text breaks the schema that was sent; what leaves nothing to be
said is refused. An upper bound beyond 64 bits ends there.
"""

from __future__ import annotations

import copy
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from service.grammars.errors import InvalidGrammarError
from service.grammars.schema_nodes import LISTED, JoinedNodes, may_be, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LIMIT = 2**63 - 1024  # the last double within 64 bits
EXACT = 2**53  # up to here each whole number is a double
MAX_STEP = 10_000  # of `multipleOf`, without its point: takes 0.02 s to read, 300 007 took 1.4 s
# Digits of bounds times steps: 997 with 6 digits could be followed, 3 001 with 5 could not.
MAX_WORK = 6_000
FEW_MULTIPLES = 1_000  # so many can be followed whatever their step
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_DIGITS_19 = 10**18
_MAX_PRODUCT = 2**32  # of two steps that are joined: the library multiplies them in 32 bits


def with_followed_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose bounds can be followed as they are. Raises InvalidGrammarError."""
    changed = copy.deepcopy(schema)
    nodes = list(nodes_of(changed))
    for node in nodes:
        _check_listed(node)
        if may_be("number", node):
            _move_bounds(node)
            _check_steps(node)
    joined = JoinedNodes(changed)
    _check_joined_steps([node for node in nodes if node in joined])
    return changed


def numbers(node: dict[str, Any], keywords: Iterable[str]) -> list[int | float]:
    """Return those of the keywords' values that are numbers."""
    return [node[name] for name in keywords if is_number(node.get(name))]


def numbers_in(value: Any) -> Iterator[int | float]:
    """Find the numbers in a value of JSON, at any depth."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(one)
    elif is_number(value):
        yield value


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; Python takes true for one, and reads 1e999 as one."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def step_of(number: float) -> tuple[int, int]:
    """Return a `multipleOf` as the library reads it, in doubles: its digits, and how many are
    behind the point.
    """
    value, num_behind = abs(float(number)), 0
    while value % 1:
        value *= 10
        num_behind += 1
    while num_behind and not value % 10:
        value /= 10
        num_behind -= 1
    return int(value), num_behind


def _check_listed(node: dict[str, Any]) -> None:
    for keyword in LISTED:
        for value in numbers_in(node.get(keyword)):
            if not _is_followed(value):
                raise InvalidGrammarError(
                    f"the JSON schema's `{keyword}` has a number that cannot be followed digit by"
                    f" digit: {shown(value)}; write it as a string"
                )


def _is_followed(value: float) -> bool:
    if _is_near(value):
        return True
    if abs(value) > LIMIT or float(value) != value:
        return False
    # Of what is written as a fraction it writes the fewest digits that name the double.
    return isinstance(value, int) or Decimal(repr(value)) == value


def _move_bounds(node: dict[str, Any]) -> None:
    """Have what lies beyond the whole numbers that are doubles begin and end at ones that are."""
    was_moved = [_move_bound(node, keywords, sign) for keywords, sign in ((LOWER, -1), (UPPER, 1))]
    if all(was_moved) and node["minimum"] > node["maximum"]:
        raise InvalidGrammarError(
            "the JSON schema has numbers between two bounds that are closer than doubles are"
        )
    # Of 19 digits the library wants both bounds.
    if not numbers(node, UPPER) and any(one >= _DIGITS_19 for one in numbers(node, LOWER)):
        node["maximum"] = LIMIT
    if not numbers(node, LOWER) and any(one <= -_DIGITS_19 for one in numbers(node, UPPER)):
        node["minimum"] = -LIMIT


def _move_bound(node: dict[str, Any], keywords: tuple[str, str], sign: int) -> bool:
    """Have a far bound, of either keyword, be an inclusive double; return whether there was one."""
    inclusive, exclusive = keywords
    if node.get(exclusive) is True and is_number(node.get(inclusive)):  # as old drafts have it
        node[exclusive] = node.pop(inclusive)
    far = {
        name: bound for name in keywords for bound in numbers(node, [name]) if not _is_near(bound)
    }
    moved = []
    for name, bound in far.items():
        if sign * bound < -LIMIT or (name == exclusive and sign * bound == -LIMIT):
            raise InvalidGrammarError(
                f"the JSON schema has a `{name}` of {shown(bound)}: numbers beyond 64 bits"
                " cannot be followed"
            )
        moved.append(_double_below(sign * bound, is_exclusive=name == exclusive))
        del node[name]
    if moved:
        node[inclusive] = sign * min([*moved, *(sign * one for one in numbers(node, [inclusive]))])
    return bool(moved)


def _is_near(value: float) -> bool:
    return abs(value) <= EXACT


def _double_below(value: float, *, is_exclusive: bool) -> int:
    """Return the last whole number within 64 bits, at most a value, that the library reads and
    writes exactly so or lower.
    """
    if value > LIMIT:
        return LIMIT
    found = float(value)
    # Of a bound of fractions it writes the fewest digits that name the double.
    while found > value or Decimal(repr(found)) > value or (is_exclusive and found == value):
        found = math.nextafter(found, -math.inf)
    return int(found)


def _check_steps(node: dict[str, Any]) -> None:
    for given in numbers(node, ["multipleOf"]):
        if not given or not _is_near(given) or step_of(given)[0] > MAX_STEP:
            raise InvalidGrammarError(
                f"the JSON schema has a `multipleOf` of {shown(given)}: steps of 1 to"
                f" {MAX_STEP} can be followed, and those of as many digits behind a point"
            )
        step, _ = step_of(given)
        lowest, highest = numbers(node, LOWER), numbers(node, UPPER)
        digits = max((len(str(abs(int(one)))) for one in [*lowest, *highest]), default=0)
        room = min(highest) - max(lowest) if lowest and highest else math.inf
        if step * digits > MAX_WORK and room > FEW_MULTIPLES * abs(given):
            raise InvalidGrammarError(
                f"the JSON schema has a `multipleOf` of {shown(given)} beside bounds of {digits}"
                " digits, which together take too much work; leave one of them out"
            )


def _check_joined_steps(nodes: Sequence[dict[str, Any]]) -> None:
    steps = {step_of(given) for node in nodes for given in numbers(node, ["multipleOf"])}
    most_behind = max((behind for _, behind in steps), default=0)
    common = 1
    for digits, behind in steps:
        step = digits * 10 ** (most_behind - behind)
        product, common = common * step, math.lcm(common, step)
        if len(steps) > 1 and (product >= _MAX_PRODUCT or _reduced(common, most_behind) > MAX_STEP):
            raise InvalidGrammarError(
                "the JSON schema joins parts with several `multipleOf`, whose common steps are more"
                f" than {MAX_STEP}"
            )


def _reduced(step: int, num_behind: int) -> int:
    while num_behind and not step % 10:
        step, num_behind = step // 10, num_behind - 1
    return step


def shown(value: float) -> str:
    """Return a number as a sentence has it, without its digits where these are many."""
    return repr(value) if abs(value) < 10**30 else "a number of over 30 digits"
