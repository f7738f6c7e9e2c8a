"""A runner without a model: each token follows from the one before it and its position.

So a wrong input token, position or slot shows in every later token. It also watches what a real
runner could not survive: blocks or slots shared between sequences, or taken from a launched step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.batch import SampledTokens, ScheduledDecode, ScheduledPrefill
from engine.config import EngineConfig
from engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.batch import ScheduledBatch
    from engine.sampling_params import SamplingParams

VOCAB_SIZE = 50


def config(
    *,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 64,
    num_blocks: int = 16,
    block_size: int = 4,
) -> EngineConfig:
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
    )


def sequence(sequence_id: int, num_prompt_tokens: int, params: SamplingParams) -> Sequence:
    return Sequence(
        sequence_id=sequence_id,
        prompt_token_ids=tuple(range(num_prompt_tokens)),
        params=params,
        seed=0,
        max_output_tokens=params.max_tokens,
    )


def next_token(token_id: int, position: int) -> int:
    """What follows a token at a position."""
    return (token_id * 31 + position * 7 + 11) % VOCAB_SIZE


def expected_tokens(prompt: tuple[int, ...], max_tokens: int, stops: frozenset[int]) -> list[int]:
    """What a sequence must produce, whoever runs beside it."""
    tokens: list[int] = []
    last, position = prompt[-1], len(prompt) - 1
    while len(tokens) < max_tokens and not (tokens and tokens[-1] in stops):
        last, position = next_token(last, position), position + 1
        tokens.append(last)
    return tokens


class FakeStep:
    def __init__(self, runner: FakeRunner, batch: ScheduledBatch, tokens: list[int]) -> None:
        self.batch = batch
        self._runner = runner
        self._tokens = tokens

    def result(self) -> SampledTokens:
        self._runner.in_flight.remove(self)
        failed = frozenset(
            entry.sequence_id
            for entry, token in zip(self.batch.entries, self._tokens, strict=True)
            if self._runner.fails(entry.sequence_id, token)
        )
        tokens = {
            entry.sequence_id: (token,)
            for entry, token in zip(self.batch.entries, self._tokens, strict=True)
            if entry.sequence_id not in failed
        }
        return SampledTokens(tokens, failed)


class FakeRunner:
    vocab_size = VOCAB_SIZE

    def __init__(
        self,
        config: EngineConfig,
        *,
        before_launch: Callable[[ScheduledBatch], None] = lambda batch: None,
        fails: Callable[[int, int], bool] = lambda sequence_id, token: False,
    ) -> None:
        self.config = config
        self.before_launch = before_launch
        self.fails = fails
        self.in_flight: list[FakeStep] = []
        self.batches: list[ScheduledBatch] = []
        self._last_tokens = [0] * config.max_num_seqs

    def launch(self, batch: ScheduledBatch) -> FakeStep:
        self.before_launch(batch)
        self._check(batch)
        tokens = [self._run(entry) for entry in batch.entries]
        step = FakeStep(self, batch, tokens)
        self.in_flight.append(step)
        self.batches.append(batch)
        return step

    def _run(self, entry: ScheduledDecode | ScheduledPrefill) -> int:
        if isinstance(entry, ScheduledPrefill):
            token = next_token(entry.token_ids[-1], len(entry.token_ids) - 1)
        else:
            token = next_token(self._last_tokens[entry.slot], entry.position)
        self._last_tokens[entry.slot] = token
        return token

    def _check(self, batch: ScheduledBatch) -> None:
        size = self.config.block_size
        assert batch.entries
        assert len(batch.entries) <= self.config.max_num_seqs
        for entry in batch.entries:
            last = (
                entry.position if isinstance(entry, ScheduledDecode) else len(entry.token_ids) - 1
            )
            assert last < self.config.max_model_len
            assert last < len(entry.block_table) * size

        num_prompt_tokens = sum(len(prefill.token_ids) for prefill in batch.prefills)
        assert num_prompt_tokens <= self.config.max_num_batched_tokens or len(batch.prefills) == 1

        # Whoever is in a launched step or in this one owns its slot and blocks alone.
        owners: dict[tuple[str, int], int] = {}
        for launched in (*(step.batch for step in self.in_flight), batch):
            for entry in launched.entries:
                for place in (("slot", entry.slot), *(("block", b) for b in entry.block_table)):
                    assert owners.setdefault(place, entry.sequence_id) == entry.sequence_id
        assert len({entry.sequence_id for entry in batch.entries}) == len(batch.entries)
