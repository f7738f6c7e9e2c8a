"""Keeps each slot's sampling settings and token counts on the device, from step to step.

A steady decode step brings no settings along: its rows name their slots. What is large (a number
for every slot and token) is made when the first sequence asks for it. What a step's rows need of
all this is put together in `row_plan`, used in `sampler`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray
    from torch import Tensor

    from engine.sampling_params import SamplingParams
    from engine.scheduling.batch import SlotStart

# Gives the device an array of the host's, which is not changed afterwards.
Send: TypeAlias = "Callable[[NDArray[Any]], Tensor]"

# Beyond these a repetition penalty would overflow or vanish in float32; it has long since decided.
MIN_REPETITION, MAX_REPETITION = 1e-6, 1e6


class Need(enum.IntFlag):
    """What a row's sampling takes beyond the most likely token.

    A row that does not need something is left as it is, to the bit, where its mates do.
    """

    SAMPLE = enum.auto()  # a random token; all below without it means a greedy row
    TOP_K = enum.auto()
    TOP_P = enum.auto()
    MIN_P = enum.auto()
    TYPICAL_P = enum.auto()
    LOGIT_OFFSETS = enum.auto()  # logit_bias, allowed and banned ids
    MIN_TOKENS = enum.auto()  # while there are fewer
    PENALTIES = enum.auto()  # presence, frequency or repetition
    REPETITION = enum.auto()  # penalties that count the prompt too
    LEADING = TOP_K | TOP_P


class Setting(enum.IntEnum):
    """The columns of `SamplingState.settings`."""

    TEMPERATURE = 0  # 0 of a greedy row
    TOP_K = 1  # vocab where all are kept
    TOP_P = 2
    MIN_P = 3
    TYPICAL_P = 4
    PRESENCE = 5
    FREQUENCY = 6
    REPETITION = 7
    MIN_POSITION = 8  # of the first token that may be an end


class SamplingState:
    """What sampling knows of every slot.

    There is one slot more than sequences, `padding_slot`: greedy, and nobody's.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        vocab_size: int,
        device: torch.device,
        is_graph_safe: bool | None = None,
        send: Send | None = None,
    ) -> None:
        """Make room.

        is_graph_safe (by default, wherever there may be graphs): see `sampler`. send: how a step
        sends; by default it waits for the copy.
        """
        self.vocab_size = vocab_size
        self.device = device
        self.send: Send = send or (lambda array: torch.from_numpy(array).to(device))
        self.is_graph_safe = device.type != "cpu" if is_graph_safe is None else is_graph_safe
        self.padding_slot = max_num_seqs
        num_slots = max_num_seqs + 1
        neutral = torch.tensor(_settings_row(None, 0, vocab_size), dtype=torch.float64)
        self.settings = neutral.repeat(num_slots, 1).to(device)  # [slots, settings] float64
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.token_ids = torch.arange(vocab_size, device=device)
        self.bit_places = torch.arange(32, dtype=torch.int32, device=device)
        # [slots, vocab] each, made by `reserve`
        self.logit_offsets: Tensor | None = None  # float32: bias, and -Inf for what is never picked
        self.is_end: Tensor | None = None  # bool: end ids of slots that have min_tokens
        self.counts: Tensor | None = None  # int32: how often each token was generated
        self.is_in_prompt: Tensor | None = None  # bool
        # The host's knowledge of the same
        self._needs = [Need(0)] * num_slots  # from min_position on
        self._early_needs = [Need(0)] * num_slots  # before
        self._min_positions = [0] * num_slots
        self._num_logprobs: list[int | None] = [None] * num_slots

    def start(self, start: SlotStart) -> None:
        """Forget who had the slot and take in the settings and tokens of who has it now."""
        slot, params = start.slot, start.params
        needs = needs_of(params, self.vocab_size)
        num_prompt = len(start.prompt_token_ids)
        row = _settings_row(params, num_prompt, self.vocab_size)
        self.settings[slot].copy_(self.send(np.array(row, dtype=np.float64)))
        self.seeds[slot].fill_(start.seed)
        self._needs[slot] = needs & ~Need.MIN_TOKENS
        self._early_needs[slot] = needs
        self._min_positions[slot] = int(row[Setting.MIN_POSITION])
        self._num_logprobs[slot] = params.logprobs
        self.reserve(needs)
        self._write_logit_offsets(slot, params)
        self._write_is_end(slot, params)
        self._write_counts(slot, start.output_token_ids)
        if self.is_in_prompt is not None:
            prompt = start.prompt_token_ids if needs & Need.REPETITION else ()
            self.is_in_prompt[slot].zero_().index_fill_(0, self.send_ids(prompt), True)

    def reserve(self, needs: Need) -> None:
        """Make the tables that these needs read, once for all: a graph holds on to them."""
        shape = (self.settings.shape[0], self.vocab_size)
        if needs & Need.LOGIT_OFFSETS and self.logit_offsets is None:
            self.logit_offsets = torch.zeros(shape, device=self.device)
        if needs & Need.MIN_TOKENS and self.is_end is None:
            self.is_end = torch.zeros(shape, dtype=torch.bool, device=self.device)
        if needs & Need.PENALTIES and self.counts is None:
            self.counts = torch.zeros(shape, dtype=torch.int32, device=self.device)
        if needs & Need.REPETITION and self.is_in_prompt is None:
            self.is_in_prompt = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def row_needs(self, slot: int, position: int) -> Need:
        """Tell what sampling the token at `position` takes."""
        is_early = position < self._min_positions[slot]
        return self._early_needs[slot] if is_early else self._needs[slot]

    def num_logprobs(self, slot: int) -> int | None:
        """Tell how many leading tokens' logprobs the slot asks for; None where it asks for none."""
        return self._num_logprobs[slot]

    def record(self, slots: Tensor, tokens: Tensor, kept: Tensor | None = None) -> None:
        """Count generated tokens; those of slots without penalties may be left out.

        slots, tokens: [rows] int64. kept: [rows] bool, the rows to count; None counts all.
        """
        if self.counts is None:
            return
        ones = torch.ones_like(tokens, dtype=torch.int32) if kept is None else kept.int()
        self.counts.view(-1).index_add_(0, slots * self.vocab_size + tokens, ones)

    def send_ids(self, values: Collection[int]) -> Tensor:
        """Give the device whole numbers: [n] int64."""
        # Through NumPy: 32 of them take 2.3 µs, `torch.tensor` takes 4.9 (2026-11).
        ids = values if isinstance(values, (list, tuple)) else list(values)
        return self.send(np.array(ids, dtype=np.int64))

    def _write_logit_offsets(self, slot: int, params: SamplingParams) -> None:
        if self.logit_offsets is None:
            return
        row = self.logit_offsets[slot].zero_()
        if params.logit_bias:
            bias = np.array(list(params.logit_bias.values()), dtype=np.float32)
            row.index_copy_(0, self.send_ids(params.logit_bias), self.send(bias))
        if params.allowed_token_ids is not None:
            allowed = self.send_ids(params.allowed_token_ids)
            kept = row.index_select(0, allowed)
            row.fill_(float("-inf")).index_copy_(0, allowed, kept)
        row.index_fill_(0, self.send_ids(params.banned_token_ids), float("-inf"))

    def _write_is_end(self, slot: int, params: SamplingParams) -> None:
        if self.is_end is not None:
            ends = params.end_token_ids if params.min_tokens else ()
            self.is_end[slot].zero_().index_fill_(0, self.send_ids(ends), True)

    def _write_counts(self, slot: int, token_ids: tuple[int, ...]) -> None:
        if self.counts is not None:
            self.counts[slot].zero_()
            tokens = self.send_ids(token_ids)
            self.record(torch.full_like(tokens, slot), tokens)


def needs_of(params: SamplingParams, vocab_size: int) -> Need:
    """Tell what these settings take; at a greedy row nothing narrows the choice."""
    narrowing = {
        Need.SAMPLE: True,
        Need.TOP_K: params.top_k is not None and params.top_k < vocab_size,
        Need.TOP_P: params.top_p < 1,
        Need.MIN_P: params.min_p > 0,
        Need.TYPICAL_P: params.typical_p < 1,
    }
    repeats = params.repetition_penalty != 1
    changing = {
        Need.LOGIT_OFFSETS: params.logit_bias
        or params.banned_token_ids
        or params.allowed_token_ids is not None,
        Need.MIN_TOKENS: params.min_tokens and params.end_token_ids,
        Need.PENALTIES: params.presence_penalty or params.frequency_penalty or repeats,
        Need.REPETITION: repeats,
    }
    asked = changing if params.is_greedy else narrowing | changing
    needs = Need(0)
    for need, is_needed in asked.items():
        if is_needed:
            needs |= need
    return needs


def _settings_row(params: SamplingParams | None, num_prompt: int, vocab_size: int) -> list[float]:
    """Order settings as `Setting` has them; None for a slot that nobody has."""
    if params is None:
        return [0.0, vocab_size, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    return [
        0.0 if params.is_greedy else params.temperature,
        min(params.top_k or vocab_size, vocab_size),
        params.top_p,
        params.min_p,
        params.typical_p,
        params.presence_penalty,
        params.frequency_penalty,
        min(max(params.repetition_penalty, MIN_REPETITION), MAX_REPETITION),
        num_prompt + params.min_tokens,
    ]
