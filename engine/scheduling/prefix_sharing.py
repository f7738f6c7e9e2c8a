"""Lets sequences that begin alike share the blocks of their beginning.

Names are made in `prefix`, blocks are kept by `block_manager`; here is which of a sequence's blocks
have a name already, and which may get one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from engine.scheduling.pieces import num_shared_blocks
from engine.scheduling.prefix import block_digest, root_digest

if TYPE_CHECKING:
    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.sequence import Sequence


class PrefixSharing:
    """Finds the cached blocks of a sequence's beginning, and offers its full ones to others."""

    def __init__(self, blocks: BlockManager, *, is_lasting: bool) -> None:
        """is_lasting: whether sequences share with earlier ones, or only within their group."""
        self._blocks = blocks
        self._is_lasting = is_lasting
        self._secret = secrets.token_bytes(32)

    def set_root(self, sequence: Sequence, *, cache_salt: str, group: int | None) -> None:
        """Decide with whom a new sequence shares, see `engine.request.SequenceRequest`."""
        if not self._is_lasting:
            own = f"sequence {sequence.sequence_id}" if group is None else f"group {group}"
            cache_salt = f"{own} {cache_salt}"
        sequence.root_digest = root_digest(self._secret, cache_salt)

    def find(self, sequence: Sequence) -> list[int]:
        """Return the cached blocks that a sequence begins with, as it is admitted."""
        sequence.is_shared = True
        if sequence.params.prompt_logprobs is not None:
            return []  # every token of the prompt must be computed to be reported
        # The last token is computed in any case: something must give the logits.
        num_tokens = sequence.num_known_tokens - 1
        num_blocks = num_shared_blocks(sequence, num_tokens, self._blocks.block_size)
        self._extend_digests(sequence, num_blocks)
        return self._blocks.find_prefix(sequence.block_digests[:num_blocks])

    def register(self, sequence: Sequence) -> None:
        """Let others find the blocks of its prompt that are computed, or being computed."""
        if not sequence.is_shared:
            return
        num_tokens = min(sequence.num_computed_tokens, sequence.num_known_tokens)
        num_full = num_shared_blocks(sequence, num_tokens, self._blocks.block_size)
        self._extend_digests(sequence, num_full)
        for index in range(sequence.num_registered_blocks, num_full):
            digest = sequence.block_digests[index]
            self._blocks.register(
                sequence.sequence_id, index, digest, is_background=sequence.is_background
            )
        sequence.num_registered_blocks = max(sequence.num_registered_blocks, num_full)

    def _extend_digests(self, sequence: Sequence, num_blocks: int) -> None:
        digests, size = sequence.block_digests, self._blocks.block_size
        while len(digests) < num_blocks:
            start = len(digests) * size
            parent = digests[-1] if digests else sequence.root_digest
            digests.append(block_digest(parent, sequence.known_token_ids(start, start + size)))
