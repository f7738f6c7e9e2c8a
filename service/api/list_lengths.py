"""How much lists and objects of a request may hold, said before anybody looks at what they hold.

pydantic would describe each of a million wrong items, for seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BeforeValidator, ValidationInfo

from service.api.requests import limits_of

if TYPE_CHECKING:
    from collections.abc import Sized


def require_few(value: Sized, most: int, what: str) -> None:
    """Refuse what holds more than `most` of `what`. Raises ValueError."""
    if len(value) > most:
        raise ValueError(f"has {len(value)} {what}; give at most {most}")


def at_most(most: int, what: str) -> BeforeValidator:
    """Refuse a list or an object that holds more than `most` of `what`."""

    def check(value: object) -> object:
        if isinstance(value, list | dict):
            require_few(value, most, what)
        return value

    return BeforeValidator(check)


def no_more_than_messages(what: str, *, empty: str | None = None) -> BeforeValidator:
    """Refuse a list that holds more of `what` than a dialogue may have messages.

    empty: what is said of an empty list, where it is refused.
    """

    def check(value: object, info: ValidationInfo) -> object:
        if empty is not None and value == []:
            raise ValueError(empty)
        if isinstance(value, list):
            require_few(value, limits_of(info).max_messages, what)
        return value

    return BeforeValidator(check)


FEW_MESSAGES = no_more_than_messages("messages", empty="is empty; give at least one message")
