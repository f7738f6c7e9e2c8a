"""Turns panics of libraries written in Rust into the errors that they mean.

`pyo3` raises them as PanicException, which derives from BaseException and can't be imported: what
catches Exception lets them pass, and a thread or a process ends that should only have refused.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_CHARACTERS = 300  # of a panic's own words; some hold the text that they broke on


def is_panic(error: BaseException) -> bool:
    """Tell whether a library written in Rust broke."""
    return any(
        (kind.__module__, kind.__name__) == ("pyo3_runtime", "PanicException")
        for kind in type(error).__mro__
    )


@contextmanager
def panics_as(make_error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise what `make_error` makes of a panic's words in its place; all else passes."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        words = " ".join(str(error).split())[:_MAX_CHARACTERS]
        raise make_error(words or "it gave no reason") from error
