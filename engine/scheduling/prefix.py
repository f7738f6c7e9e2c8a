"""Names for stretches of tokens, so that equal prefixes can share their blocks.

A block's name covers its own tokens and all before them. It is a salted SHA-256, because a name
that somebody could forge, or two texts share, would hand one caller's cache to another.
"""

from __future__ import annotations

from array import array
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def root_digest(secret: bytes, salt: str) -> bytes:
    """Name the empty prefix; sequences share nothing unless their roots are alike."""
    return sha256(secret + salt.encode()).digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Name a block by its tokens and the name of the block before it."""
    return sha256(parent + array("q", token_ids).tobytes()).digest()
