"""Runs scheduled batches on the model and samples from them.

Keeps what must stay on the device between steps: the KV cache, and each slot's state. So a step
can be launched before anybody has read what the one before it sampled. Which sequences run is
decided in `scheduler`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engine.attention.kv_cache import (
    KVCache,
    attention_dtype,
    head_dim,
    num_kv_heads,
    num_layers,
    resolve_kv_dtype,
)
from engine.errors import OutOfMemoryError, UnsupportedArchitectureError
from engine.execution.decoder import make_decoder
from engine.execution.host_memory import keep_freed_memory
from engine.execution.model_input import build_model_input, model_order, num_logits
from engine.execution.slot_state import SlotState
from engine.execution.static_decode import StaticDecode, row_bucket, width_bucket
from engine.sampling.logprobs import prompt_logprobs, to_token_logprobs
from engine.sampling.row_plan import make_plan, plan_key
from engine.sampling.sampler import sample
from engine.sampling.state import SamplingState, ids_to_device
from engine.scheduling.batch import RowExtras, SampledTokens
from engine.scheduling.drafting import num_accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.config import EngineConfig
    from engine.layers.weights import LinearsInUse
    from engine.outputs import TokenLogprobs
    from engine.sampling.sampler import SampledRows
    from engine.scheduling.batch import ScheduledBatch

_NO_EXTRAS = RowExtras()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed, still on the device where it can be."""

    rows: SampledRows | None  # one for each decode, then each sample of each chunk; None of none
    num_logprobs: tuple[int | None, ...]  # leading tokens that each row asks for
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]]  # by sequence id


class PendingStep:
    """A launched step whose result has not been read yet."""

    def __init__(
        self, batch: ScheduledBatch, in_order: ScheduledBatch, step: Callable[[], StepResult]
    ) -> None:
        self.batch = batch
        self._in_order = in_order
        self._step = step

    def result(self) -> SampledTokens:
        """Wait for the step and read what it sampled; call it once. Raises `OutOfMemoryError`."""
        step = _with_memory(self._step)
        return read_result(self._in_order, step)


def read_result(batch: ScheduledBatch, step: StepResult) -> SampledTokens:
    """Sort rows into sequences, and cut drafts off where they were not what was sampled."""
    if step.rows is None:
        return SampledTokens({}, prompt_logprobs=step.prompt_logprobs)
    tokens = step.rows.tokens.tolist()
    token_ids: dict[int, tuple[int, ...]] = {}
    rows_of: dict[int, tuple[int, int]] = {}  # first and last that count
    for row, sequence_id in enumerate(batch.decodes.sequence_ids):
        token_ids[sequence_id] = (tokens[row],)
        rows_of[sequence_id] = row, row + 1
    row = len(batch.decodes)
    for chunk in batch.chunks:
        if chunk.num_samples:
            stop = row + 1 + num_accepted(chunk.drafts, tokens[row:])
            token_ids[chunk.sequence_id] = tuple(tokens[row:stop])
            rows_of[chunk.sequence_id] = row, stop
            row += chunk.num_samples
    return SampledTokens(
        token_ids,
        _sequences_with_any(~step.rows.is_finite, rows_of),
        _sequences_with_any(~step.rows.has_choice, rows_of),
        _read_logprobs(step, rows_of),
        step.prompt_logprobs,
    )


def _sequences_with_any(marked: Tensor, rows_of: Mapping[int, tuple[int, int]]) -> frozenset[int]:
    """Find the sequences of which a row is marked; marked: [rows] bool."""
    if not bool(marked.any()):
        return frozenset()
    rows = marked.tolist()
    return frozenset(
        sequence_id for sequence_id, (start, stop) in rows_of.items() if any(rows[start:stop])
    )


def _read_logprobs(
    step: StepResult, rows_of: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    if step.rows is None or step.rows.logprobs is None:
        return {}
    reported = to_token_logprobs(step.rows.logprobs, step.num_logprobs)
    found = {
        sequence_id: tuple(row for row in reported[start:stop] if row is not None)
        for sequence_id, (start, stop) in rows_of.items()
    }
    return {sequence_id: rows for sequence_id, rows in found.items() if rows}


class ModelRunner:
    """Owns the model, the KV cache and what is resident by slot."""

    def __init__(self, model: PreTrainedModel, config: EngineConfig) -> None:
        """Take the model over; raises `UnsupportedArchitectureError`."""
        embedding: Any = model.get_input_embeddings()
        self.vocab_size: int = embedding.weight.shape[0]
        self._is_batch_invariant = config.is_batch_invariant
        self._device = model.device
        if self._device.type == "cpu":
            keep_freed_memory()
        self._decoder = make_decoder(
            model, config.max_model_len, is_batch_invariant=config.is_batch_invariant
        )
        self._cache = KVCache(
            num_layers=num_layers(model.config),
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            num_kv_heads=num_kv_heads(model.config),
            head_dim=head_dim(model.config),
            kept_as=resolve_kv_dtype(model, config.kv_dtype),
            dtype=attention_dtype(model),
            device=self._device,
        )
        self._slots = SlotState(
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            cache=self._cache,
        )
        self._sampling = SamplingState(
            max_num_seqs=config.max_num_seqs,
            vocab_size=self.vocab_size,
            device=self._device,
            is_graph_safe=self._resolve_is_static(config),
        )
        self._is_static = self._resolve_is_static(config)
        self._static_decodes: dict[tuple[int, int], StaticDecode] = {}  # by rows and width
        self._max_model_len = config.max_model_len
        self._num_prompt_logprobs: dict[int, int] = {}  # asked for, by slot

    def linears(self) -> tuple[LinearsInUse, ...]:
        """Return the linear layers that steps multiply by."""
        return tuple(self._decoder.linears())

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the first layers alone until the end of the block."""
        return self._decoder.first_layers(num_layers)

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Run every step as it comes until the end of the block."""
        is_static, self._is_static = self._is_static, False
        try:
            yield
        finally:
            self._is_static = is_static

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step, without waiting for it. Raises `OutOfMemoryError`."""
        in_order = model_order(batch)
        run = partial(self._run, in_order)
        if self._device.type == "cpu":
            # Nothing runs beside us here, so the step runs when its result is asked for: a token is
            # handed out before the next one is computed, not after.
            return PendingStep(batch, in_order, run)
        step = _with_memory(run)  # queued on the device
        return PendingStep(batch, in_order, lambda: step)

    @torch.inference_mode()
    def _run(self, batch: ScheduledBatch) -> StepResult:
        self._take_in(batch)
        if self._is_static and not batch.chunks:
            return self._run_static(batch)
        model_input = build_model_input(
            batch, self._slots, self._cache, is_batch_invariant=self._is_batch_invariant
        )
        logits = self._decoder.logits(model_input)
        if logits.shape[-1] > self.vocab_size:
            raise UnsupportedArchitectureError(
                f"the model's head gives {logits.shape[-1]} logits, its embedding has"
                f" {self.vocab_size} rows; a sampled id could lie outside it"
            )
        reported = self._prompt_logprobs(batch, logits)
        return self._sample(batch, _sampled_logits(batch, logits), reported)

    def _resolve_is_static(self, config: EngineConfig) -> bool:
        """Whether decode steps run in shapes made beforehand."""
        if config.is_batch_invariant:  # row by row
            return False
        on_cpu = self._device.type == "cpu"
        return not (on_cpu if config.enforce_eager is None else config.enforce_eager)

    def _run_static(self, batch: ScheduledBatch) -> StepResult:
        """Run a step of decodes only."""
        decodes = batch.decodes
        longest = max(decodes.positions) + 1
        shape = (
            row_bucket(len(decodes)),
            width_bucket(longest, self._cache.block_size, self._max_model_len),
        )
        if shape not in self._static_decodes:
            self._static_decodes[shape] = StaticDecode(
                *shape,
                decoder=self._decoder,
                cache=self._cache,
                slots=self._slots,
                sampling=self._sampling,
            )
        step = self._static_decodes[shape]
        step.fill(decodes.slots, decodes.positions)
        sampled_at = [position + 1 for position in decodes.positions]
        rows = step.run(plan_key(self._sampling, decodes.slots, sampled_at))
        return StepResult(rows, tuple(map(self._sampling.num_logprobs, decodes.slots)), {})

    def _take_in(self, batch: ScheduledBatch) -> None:
        self._cache.clear(batch.dirty_blocks)
        self._slots.take_in(batch)
        for start in batch.starts:
            self._sampling.start(start)
            self._num_prompt_logprobs[start.slot] = start.params.prompt_logprobs or 0

    def _sample(
        self,
        batch: ScheduledBatch,
        logits: Tensor,
        reported: dict[int, tuple[TokenLogprobs, ...]],
    ) -> StepResult:
        slots = list(batch.decodes.slots)
        positions = [position + 1 for position in batch.decodes.positions]
        extras: dict[int, RowExtras] = {}
        for chunk in batch.chunks:
            for index in range(chunk.num_samples):
                if chunk.extras and chunk.extras[index] != _NO_EXTRAS:
                    extras[len(slots)] = chunk.extras[index]
                slots.append(chunk.slot)
                positions.append(chunk.stop - chunk.num_samples + index + 1)
        if not slots:
            return StepResult(None, (), reported)
        plan = make_plan(self._sampling, slots, positions, extras)
        rows = sample(logits, plan, self._sampling)
        self._keep_last_tokens(batch, rows.tokens)
        return StepResult(rows, tuple(map(self._sampling.num_logprobs, slots)), reported)

    def _keep_last_tokens(self, batch: ScheduledBatch, tokens: Tensor) -> None:
        """Note in each slot the last token it got, and count what was generated."""
        kept_slots = list(batch.decodes.slots)
        kept_rows = list(range(len(batch.decodes)))
        row = len(kept_rows)
        host_tokens: list[int] | None = None
        all_slots, all_rows = list(kept_slots), list(kept_rows)
        for chunk in batch.chunks:
            if not chunk.num_samples:
                continue
            accepted = 0
            if chunk.num_drafts:
                # A draft was made from tokens that the host has seen, so nothing runs ahead of it.
                host_tokens = tokens.tolist() if host_tokens is None else host_tokens
                accepted = num_accepted(chunk.drafts, host_tokens[row:])
            kept_slots.append(chunk.slot)
            kept_rows.append(row + accepted)
            all_slots += [chunk.slot] * (accepted + 1)
            all_rows += range(row, row + accepted + 1)
            row += chunk.num_samples
        device = tokens.device
        picked = tokens.index_select(0, ids_to_device(kept_rows, device))
        self._slots.last_tokens.index_copy_(0, ids_to_device(kept_slots, device), picked)
        self._sampling.record(
            ids_to_device(all_slots, device),
            tokens.index_select(0, ids_to_device(all_rows, device)),
        )

    def _prompt_logprobs(
        self, batch: ScheduledBatch, logits: Tensor
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        reported: dict[int, tuple[TokenLogprobs, ...]] = {}
        row = len(batch.decodes)
        for chunk in batch.chunks:
            if chunk.prompt_targets is not None:
                targets = torch.tensor(chunk.prompt_targets, device=logits.device)
                found = prompt_logprobs(
                    logits[row : row + len(targets)],
                    targets,
                    self._num_prompt_logprobs[chunk.slot],
                )
                reported[chunk.sequence_id] = tuple(found)
            row += num_logits(chunk)
        return reported


def _sampled_logits(batch: ScheduledBatch, logits: Tensor) -> Tensor:
    """Leave out the rows that only a prompt's logprobs are told from."""
    num_rows = len(batch.decodes) + sum(chunk.num_samples for chunk in batch.chunks)
    if logits.shape[0] == num_rows:
        return logits
    rows = list(range(len(batch.decodes)))
    stop = len(rows)
    for chunk in batch.chunks:
        stop += num_logits(chunk)
        rows += range(stop - chunk.num_samples, stop)
    return logits.index_select(0, torch.tensor(rows, dtype=torch.int64, device=logits.device))


def _with_memory(run: Callable[[], StepResult]) -> StepResult:
    """Run a step; say in the engine's words that there was too little memory."""
    try:
        return run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(str(error)) from error
