"""Says in one line which settings are wrong, where each was set, and what was expected there.

Secrets are never repeated.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from service.settings.names import flag_of, variable_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# Their values appear in no message and no log.
SECRETS = frozenset({"admin_key", "api_key", "hub_token"})


def describe_errors(error: ValidationError) -> str:
    """Say in one line what is wrong with settings that came from elsewhere than the start."""
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: {_reason(detail)}"
        for detail in error.errors(include_url=False)
    )


def explain_with_sources(
    error: ValidationError, flags: Mapping[str, object], file: Path | None
) -> str:
    """Say in one line which settings are wrong, where they were set, and what was expected."""
    wrong: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        # A setting that may be a number or "auto" comes with one reason for each.
        wrong.setdefault(_subject(detail, flags, file), []).append(_reason(detail))
    return "; ".join(subject + ", or ".join(reasons) for subject, reasons in wrong.items())


def _subject(detail: ErrorDetails, flags: Mapping[str, object], file: Path | None) -> str:
    """Name a setting by where it was set, and say what was found there."""
    if not detail["loc"]:
        return ""
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{name} in {file} "
    found = "" if name in SECRETS else f" is {str(detail['input'])[:60]!r}"
    return f"{_place(name, flags, file)}{found}: "


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return "is not a setting; see docs/configuration.md"
    message = detail["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _place(name: str, flags: Mapping[str, object], file: Path | None) -> str:
    if name in flags:
        return "VARIANT" if name == "variant" else flag_of(name)
    variable = variable_of(name)
    if variable in {known.upper() for known in os.environ}:
        return variable
    return f"{name} in {file}"
