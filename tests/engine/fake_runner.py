"""A runner without a model: each token follows from all before it, its position and the seed.

Its cache keeps, for every token, a name of the whole prefix that the token ended. Before each step
it looks whether every sequence finds exactly its own prefix in its blocks: a wrong block, slot,
position or token, a block given away too early or shared wrongly, fails the test on the spot.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.constraint import ALLOWS_NOTHING
from engine.outputs import TokenLogprobs
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import SampledTokens
from engine.scheduling.drafting import num_accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from engine.scheduling.batch import ScheduledBatch, ScheduledChunk, SlotStart

VOCAB_SIZE = 50


def config(**changes: Any) -> EngineConfig:
    sizes = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 64,
        "num_blocks": 16,
        "block_size": 4,
    }
    return EngineConfig(**(sizes | changes))


def request(
    sequence_id: int,
    prompt: int | Sequence[int],
    params: SamplingParams | None = None,
    **others: Any,
) -> SequenceRequest:
    """A request; a number stands for so many tokens that no other sequence has."""
    if isinstance(prompt, int):
        prompt = [(sequence_id * 7 + i * i) % VOCAB_SIZE for i in range(prompt)]
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=tuple(prompt),
        params=params or SamplingParams(max_tokens=8, temperature=0),
        **others,
    )


def extend_name(name: int, token_id: int) -> int:
    """Name a prefix that is one token longer."""
    return (name * 1_000_003 + token_id + 1) % (2**61 - 1)


def name_of(tokens: Sequence[int]) -> int:
    name = 0
    for token_id in tokens:
        name = extend_name(name, token_id)
    return name


class Model:
    """What follows a prefix."""

    def __init__(self, *, repeats_itself: bool = False) -> None:
        self.repeats_itself = repeats_itself  # so that drafts are often right

    def next_token(self, name: int, last: int, position: int, seed: int | None) -> int:
        """position: of the last token."""
        if self.repeats_itself and position % 23:
            return (last * 3 + 1) % 7
        return (name + (seed or 0) * (position + 1)) % VOCAB_SIZE

    def answer(self, request: SequenceRequest) -> list[int]:
        """What a sequence must produce, whoever runs beside it."""
        params = request.params
        tokens = list(request.prompt_token_ids)
        name = name_of(tokens)
        answer: list[int] = []
        while len(answer) < params.max_tokens and not (
            answer and answer[-1] in params.end_token_ids
        ):
            answer.append(self.next_token(name, tokens[-1], len(tokens) - 1, params.seed))
            tokens.append(answer[-1])
            name = extend_name(name, answer[-1])
        return answer


class FakeStep:
    def __init__(
        self, runner: FakeRunner, batch: ScheduledBatch, sampled: SampledTokens | Exception
    ) -> None:
        self.batch = batch
        self._runner = runner
        self._sampled = sampled
        self.error = sampled if isinstance(sampled, Exception) else None

    def result(self) -> SampledTokens:
        assert self._runner.in_flight[0] is self  # collected in order
        self._runner.in_flight.pop(0)
        if isinstance(self._sampled, Exception):
            self._runner.in_flight.clear()
            raise self._sampled
        return self._sampled


class Slot:
    """What the runner keeps of a sequence."""

    def __init__(self, start: SlotStart) -> None:
        self.sequence_id = start.sequence_id
        self.seed = start.params.seed
        self.table = list(start.block_table)
        self.tokens = [*start.prompt_token_ids, *start.output_token_ids]
        self.names = [0]  # of every prefix
        for token_id in self.tokens:
            self.names.append(extend_name(self.names[-1], token_id))

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.names.append(extend_name(self.names[-1], token_id))


def _is_barred(chunk: ScheduledChunk, row: int) -> bool:
    """Whether no token is left to pick in a row; other masks are not followed."""
    return chunk.masks is not None and chunk.masks.result()[row] == ALLOWS_NOTHING


class FakeRunner:
    vocab_size = VOCAB_SIZE
    kernel_choices = ""

    def __init__(
        self,
        config: EngineConfig,
        *,
        model: Model | None = None,
        before_launch: Callable[[ScheduledBatch], None] = lambda batch: None,
        fails: Callable[[int, int], bool] = lambda sequence_id, num_tokens: False,
        breaks: Callable[[ScheduledBatch], Exception | None] = lambda batch: None,
    ) -> None:
        self.config = config
        self.model = model or Model()
        self.before_launch = before_launch
        self.fails = fails  # sequence id, tokens it has: its logits are NaN
        self.breaks = breaks
        self.in_flight: list[FakeStep] = []
        self.batches: list[ScheduledBatch] = []
        self.slots: dict[int, Slot] = {}
        self.cache: dict[int, int | None] = {}  # names by cache slot; None is NaN

    def launch(self, batch: ScheduledBatch) -> FakeStep:
        self.before_launch(batch)
        self._take_in(batch)
        self._check(batch)
        self.batches.append(batch)
        # What is launched behind a step that breaks breaks with it.
        broken = [step.error for step in self.in_flight if step.error is not None]
        error = broken[0] if broken else self.breaks(batch)
        step = FakeStep(self, batch, error or self._run(batch))
        self.in_flight.append(step)
        return step

    def _take_in(self, batch: ScheduledBatch) -> None:
        size = self.config.block_size
        for block in batch.dirty_blocks:
            for offset in range(size):
                self.cache.pop(block * size + offset, None)
        for start in batch.starts:
            self.slots[start.slot] = Slot(start)
        for new in batch.new_blocks:
            table = self.slots[new.slot].table
            assert new.index == len(table)
            table.append(new.block)

    def _check(self, batch: ScheduledBatch) -> None:
        limits = self.config
        ids = batch.sequence_ids
        assert ids
        assert len(set(ids)) == len(ids) <= limits.max_num_seqs
        assert batch.num_tokens <= limits.max_num_batched_tokens
        for sequence_id, slot in zip(batch.decodes.sequence_ids, batch.decodes.slots, strict=True):
            assert self.slots[slot].sequence_id == sequence_id
        for chunk in batch.chunks:
            assert self.slots[chunk.slot].sequence_id == chunk.sequence_id
            assert chunk.num_samples in (0, 1, len(chunk.token_ids))
        self._check_that_nobody_writes_where_another_reads(batch)

    def _check_that_nobody_writes_where_another_reads(self, batch: ScheduledBatch) -> None:
        size = self.config.block_size
        stretches = [
            (slot, position, position + 1)
            for slot, position in zip(batch.decodes.slots, batch.decodes.positions, strict=True)
        ]
        stretches += [(chunk.slot, chunk.start, chunk.stop) for chunk in batch.chunks]
        written: list[int] = []
        for slot, start, stop in stretches:
            table = self.slots[slot].table
            assert stop <= len(table) * size
            assert stop <= self.config.max_model_len
            written += {table[position // size] for position in range(start, stop)}
        assert len(set(written)) == len(written)

    def _run(self, batch: ScheduledBatch) -> SampledTokens:
        # Everything is written before anything is read, as real attention does it.
        for slot, position in zip(batch.decodes.slots, batch.decodes.positions, strict=True):
            assert len(self.slots[slot].tokens) == position + 1
            self._write(slot, position, self.slots[slot].tokens[position:])
        for chunk in batch.chunks:
            self._write(chunk.slot, chunk.start, chunk.token_ids)
        token_ids: dict[int, tuple[int, ...]] = {}
        failed: set[int] = set()
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        for sequence_id, slot in zip(batch.decodes.sequence_ids, batch.decodes.slots, strict=True):
            token_ids[sequence_id] = (self._sample(slot),)
        for chunk in batch.chunks:
            if chunk.prompt_targets is not None:
                prompt_logprobs[chunk.sequence_id] = tuple(
                    TokenLogprobs(float(target), ()) for target in chunk.prompt_targets
                )
            if chunk.num_samples:
                token_ids[chunk.sequence_id] = self._run_chunk(chunk)
            else:
                self._read(chunk.slot, chunk.stop)
        # By the batch: a sequence that was preempted may have left its id in another slot.
        slots = dict(zip(batch.decodes.sequence_ids, batch.decodes.slots, strict=True))
        slots |= {chunk.sequence_id: chunk.slot for chunk in batch.chunks}
        for sequence_id in list(token_ids):
            slot = slots[sequence_id]
            if self.fails(sequence_id, len(self.slots[slot].tokens)) or self._is_poisoned(slot):
                failed.add(sequence_id)
                del token_ids[sequence_id]
                for key in self._places(slot):
                    self.cache[key] = None  # NaN, for whoever reads it
        barred = {
            chunk.sequence_id
            for chunk in batch.chunks
            if (told := token_ids.get(chunk.sequence_id)) is not None
            and (len(told) < chunk.num_samples and told == chunk.drafts[: len(told)])
        }
        return SampledTokens(
            token_ids,
            frozenset(failed),
            frozenset(barred),
            prompt_logprobs=prompt_logprobs,
        )

    def _run_chunk(self, chunk: ScheduledChunk) -> tuple[int, ...]:
        held = self.slots[chunk.slot]
        drafts = chunk.drafts
        assert (
            list(chunk.token_ids[: len(chunk.token_ids) - len(drafts)])
            == (held.tokens[chunk.start : len(held.tokens)])
        )
        sampled: list[int] = []
        for row, draft in enumerate((*drafts, None)):
            if _is_barred(chunk, row):
                return tuple(sampled)
            sampled.append(self._sample(chunk.slot))
            if draft is not None and sampled[-1] != draft:
                break
        assert len(sampled) == 1 + num_accepted(drafts, [*sampled, *[-1] * len(drafts)])
        return tuple(sampled)

    def _sample(self, slot: int) -> int:
        held = self.slots[slot]
        position = len(held.tokens) - 1
        self._read(slot, position + 1)
        token_id = self.model.next_token(held.names[-1], held.tokens[-1], position, held.seed)
        held.append(token_id)
        return token_id

    def _write(self, slot: int, start: int, token_ids: Sequence[int]) -> None:
        held, places = self.slots[slot], self._places(slot)
        name = held.names[start]
        for position, token_id in enumerate(token_ids, start):
            name = extend_name(name, token_id)
            self.cache[places[position]] = name

    def _read(self, slot: int, num_tokens: int) -> None:
        held, places = self.slots[slot], self._places(slot)
        found = [self.cache.get(place, "nothing") for place in places[:num_tokens]]
        expected = held.names[1 : num_tokens + 1]
        assert all(a in (b, None) for a, b in zip(found, expected, strict=True)), (
            "a block holds another prefix"
        )

    def _is_poisoned(self, slot: int) -> bool:
        written = self._places(slot)[: len(self.slots[slot].tokens) - 1]
        return any(self.cache[place] is None for place in written)

    def _places(self, slot: int) -> list[int]:
        size = self.config.block_size
        return [block * size + offset for block in self.slots[slot].table for offset in range(size)]


def shares_a_step(batches: Sequence[ScheduledBatch]) -> bool:
    """Whether several sequences ever shared a forward pass."""
    return any(len(batch.sequence_ids) > 1 for batch in batches)


def is_chunked(batches: Sequence[ScheduledBatch], sequence_id: int) -> bool:
    """Whether a prompt was read in several steps, one right after the other's end."""
    chunks = [c for b in batches for c in b.chunks if c.sequence_id == sequence_id]
    return any(a.stop == b.start and not a.num_samples for a, b in pairwise(chunks))
