"""A reason to doubt that a checkpoint was read as its maker meant it, in plain values.

Unlike an error it keeps nothing from being served: it is shown beside the model instead. Imports
nothing that is large: the API's process reads it, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One check that found something odd."""

    check: str  # its name in snake_case, such as "unused_layers"
    reason: str  # a sentence for people: what was found, and what was expected

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.check}: {self.reason}"
