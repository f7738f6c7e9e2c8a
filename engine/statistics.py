"""What the engine can tell of itself: counts, for people, routers and admission."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """How full the engine is, and what it has done since it began."""

    num_running: int  # sequences with a slot
    num_waiting: int  # without one: new, paused or preempted
    num_queued_seqs: int  # of those waiting, the ones that never ran
    num_queued_tokens: int  # their prompt tokens
    num_free_slots: int  # for sequences that are to begin
    num_blocks: int
    num_free_blocks: int  # cached ones included
    prefill_tokens_per_s: float  # as last measured; 0 before

    # Since the start
    num_prompt_tokens: int  # of sequences that began
    num_generated_tokens: int
    num_preemptions: int
    num_pauses: int
    prefix_cache_queries: int  # prompt tokens looked up
    prefix_cache_hits: int  # of them found
    num_drafted_tokens: int
    num_accepted_tokens: int  # of the drafted ones


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCheckStatistics:
    """How far the live check of an engine's layers has come."""

    num_layers: int  # parts that a full round checks; a large layer counts as several
    num_checked: int = 0  # parts compared since the engine began
    num_skipped: int = 0  # their turn came, but memory was short; nothing is known of them
    num_rounds: int = 0  # completed ones, in which each part was compared or skipped
    last_round_s: float | None = None  # how long the last full round took, pauses included
    problem: str | None = None  # why nothing can be checked any more
