"""Reads single values of a quantiser's settings: numbers and booleans, however they were written.

Files are edited by hand and written by many tools: "4", 4.0 and "True" mean what they say. Whatever
could mean two things is refused with its name and value; null and "None" say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Other words for the same settings; AutoAWQ's own file has them.
_ALIASES = {"w_bit": "bits", "q_group_size": "group_size"}
_NOTHING = ("", "none", "null")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def read_values(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings that say something, numbers and booleans of known names as such.

    Settings of two names get the usual one. where: what holds them, for errors. Raises
    CheckpointError for values of another type, and for two names that differ.
    """
    found: dict[str, Any] = {}
    for written, value in settings.items():
        if _says_nothing(value):
            continue
        key = _ALIASES.get(written, written)
        read = _READERS[key](written, value, where) if key in _READERS else value
        if found.get(key, read) != read:
            raise CheckpointError(
                f"{where} says {key} twice, {_shown(found[key])} and {written}={_shown(value)};"
                " leave the one that is the weights'"
            )
        found[key] = read
    return found


def _says_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def whole_number(key: str, value: object, where: str) -> int:
    """Read a whole number, also one written as text or with a decimal point."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    raise CheckpointError(f"{where} says {key}={_shown(value)}, expected a whole number")


def boolean(key: str, value: object, where: str) -> bool:
    """Read a boolean, also one written as text or as 0 or 1."""
    found = _BOOLEANS.get(str(value).strip().lower()) if not isinstance(value, float) else None
    if found is None:
        raise CheckpointError(f"{where} says {key}={_shown(value)}, expected true or false")
    return found


def _shown(value: object) -> str:
    return repr(value)[:60]


_READERS: Mapping[str, Callable[[str, object, str], int]] = {
    **dict.fromkeys(("bits", "num_bits", "group_size"), whole_number),
    **dict.fromkeys(
        (
            "desc_act",
            "sym",
            "symmetric",
            "zero_point",
            "is_marlin_format",
            "lm_head",
            "static_groups",
        ),
        boolean,
    ),
}
