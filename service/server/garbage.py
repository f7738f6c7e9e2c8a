"""Keeps Python's garbage collector from looking at what stays for as long as the server runs.

Libraries and tokenizers are some 300 000 objects, and a streamed token makes a few that may hold
others; looking through all of them again and again took 6 µs a token (2026-11).
"""

from __future__ import annotations

import gc

_YOUNG_OBJECTS = 10_000  # so many new ones before the young are looked at; Python's own is 700


def settle() -> None:
    """Leave out all that exists now, once what is garbage has been let go; takes some 0.1 s."""
    gc.unfreeze()  # what an earlier model left may be garbage by now
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def sweep() -> None:
    """Let go of what an engine's end has left: its client and streams, which hold each other."""
    gc.collect()
