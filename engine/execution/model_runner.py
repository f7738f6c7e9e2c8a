"""Runs scheduled batches on the model and samples from them.

Keeps what must stay on the device between steps: the KV cache, and each slot's state. So a step
can be launched before anybody has read what the one before it sampled. Which sequences run is
decided in `scheduler`.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

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
from engine.execution.both_ways import run_both_ways
from engine.execution.decode_graphs import DecodeGraphs, Recordings
from engine.execution.decoder import HeadApart, make_decoder
from engine.execution.device_faults import is_out_of_memory
from engine.execution.drafts import sampled_places
from engine.execution.gpu_input import build_gpu_input
from engine.execution.host_memory import keep_freed_memory
from engine.execution.host_ring import DirectMemory, HostRing, section_bytes
from engine.execution.kernel_choice import choose_kernels
from engine.execution.model_input import build_model_input, model_order, num_logits
from engine.execution.native_input import build_native_input
from engine.execution.path import resolve_path, work_on
from engine.execution.pinned import memory_beside
from engine.execution.slot_state import SlotState
from engine.execution.static_decode import StaticDecode
from engine.execution.step_results import HeldResult, ResultSections, StepResult, read_result
from engine.layers.native_llama import NativeLlamaDecoder
from engine.sampling.logprobs import prompt_logprobs, prompt_logprobs_of
from engine.sampling.row_plan import make_plan, plan_key
from engine.sampling.sampler import sample
from engine.sampling.state import SamplingState
from engine.scheduling.batch import RowExtras, extras_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.attention.interface import ModelInput
    from engine.config import EngineConfig, KVDtype
    from engine.execution.host_ring import ToDevice
    from engine.execution.path import ExecutionPath
    from engine.layers.weights import LinearsInUse
    from engine.sampling.logprobs import RowLogprobs
    from engine.scheduling.batch import Decodes, SampledTokens, ScheduledBatch

Given = TypeVar("Given")

_NO_EXTRAS = RowExtras()


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


class ModelRunner:
    """Owns the model, the KV cache and what is resident by slot."""

    def __init__(
        self, model: PreTrainedModel, config: EngineConfig, path: ExecutionPath | None = None
    ) -> None:
        """Take the model over; raises `UnsupportedArchitectureError`.

        path: how steps run; by default as the device and the configuration have it.
        """
        embedding: Any = model.get_input_embeddings()
        self.vocab_size: int = embedding.weight.shape[0]
        self._is_batch_invariant = config.is_batch_invariant
        self._device = model.device
        work_on(self._device)
        if self._device.type == "cpu":
            keep_freed_memory()
        path = path or resolve_path(self._device, config)
        self._kernels = path.kernels
        self._has_flash = config.prompt_attention == "auto"
        kept_as = resolve_kv_dtype(model, config.kv_dtype)
        self._decoder = make_decoder(
            model,
            config.max_model_len,
            is_batch_invariant=config.is_batch_invariant,
            kernels=path.kernels,
            native_cache=kept_as if path.has_native else None,
            is_native_asked=config.cpu_kernels == "native",
        )
        chosen = choose_kernels(self._decoder, model.config, config, path)
        self.kernel_choices, self._attend_piece = chosen.told, chosen.attend_piece
        self._cache = _make_cache(model, config, kept_as)
        self._to_device, self._results = _host_side(self._device, config, path)
        self._slots = SlotState(
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            cache=self._cache,
            to_device=self._to_device,
        )
        self._sampling = SamplingState(
            max_num_seqs=config.max_num_seqs,
            vocab_size=self.vocab_size,
            device=self._device,
            # Wherever steps are queued nothing may wait, recorded or not.
            is_graph_safe=path.kernels is not None or path.is_overlapped,
            send=self._to_device.send,
        )
        self._num_prompt_logprobs: dict[int, int] = {}  # asked for, by slot
        self._is_to_be_recorded = path.kernels is not None and path.recorder is not None
        self._graphs = self._record(path, config)

    def linears(self) -> tuple[LinearsInUse, ...]:
        """Return the linear layers that steps multiply by."""
        return tuple(self._decoder.linears())

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the first layers alone until the end of the block."""
        return self._decoder.first_layers(num_layers)

    def recordings(self) -> Recordings:
        """Say what is recorded and replayed, and what should be and is not."""
        if self._graphs is not None:
            return self._graphs.describe()
        lacking = None
        if self._is_to_be_recorded:  # and the layers do not allow it
            lacking = "steps are not recorded: the model's layers wait for the device"
        return Recordings(num_replays=0, lacking=lacking)

    def eagerly(self) -> AbstractContextManager[None]:
        """Run every step as it comes until the end of the block."""
        return nullcontext() if self._graphs is None else self._graphs.directly()

    def recording_at_once(self) -> AbstractContextManager[None]:
        """Record every decode step that is wanted until the end of the block."""
        return nullcontext() if self._graphs is None else self._graphs.at_once()

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step, without waiting for it. Raises `OutOfMemoryError`."""
        in_order = model_order(batch)
        if self._results is None:
            # Nothing runs beside us here, so the step runs when its result is asked for: a token is
            # handed out before the next one is computed, not after.
            return PendingStep(batch, in_order, partial(self._run, in_order))
        held = _with_memory(partial(self._run_and_hold, in_order, self._results))
        return PendingStep(batch, in_order, held.read)

    @torch.inference_mode()
    def _run_and_hold(self, batch: ScheduledBatch, results: ResultSections) -> HeldResult:
        """Queue a step on the device, and the copies of its results behind it."""
        self._to_device.begin_step()
        try:
            return results.hold(self._run(batch))
        finally:
            self._to_device.end_step()

    @torch.inference_mode()
    def _run(self, batch: ScheduledBatch) -> StepResult:
        self._take_in(batch)
        if self._graphs is not None and not batch.chunks:
            recorded = self._run_recorded(batch.decodes, self._graphs)
            if recorded is not None:
                return recorded
        logits, reported = self._logits(batch)
        if logits.shape[-1] > self.vocab_size:
            raise UnsupportedArchitectureError(
                f"the model's head gives {logits.shape[-1]} logits, its embedding has"
                f" {self.vocab_size} rows; a sampled id could lie outside it"
            )
        return self._sample(batch, logits, reported)

    def _logits(self, batch: ScheduledBatch) -> tuple[Tensor, dict[int, RowLogprobs]]:
        """Return what is sampled from, and how likely prompts' tokens were."""
        if self._kernels is not None or self._is_batch_invariant:
            return self._logits_of(batch)
        size, send = self._cache.block_size, self._sampling.send_ids
        return run_both_ways(batch, size, self._logits_of, send)

    def _logits_of(
        self, batch: ScheduledBatch, *, has_pieces: bool = False
    ) -> tuple[Tensor, dict[int, RowLogprobs]]:
        """Run what goes one way: pieces of prompts, or what is none."""
        model_input, decoder = self._lay_out(batch, has_pieces=has_pieces), self._decoder
        send = self._sampling.send_ids
        if _tells_of_prompts(batch) and isinstance(decoder, HeadApart):
            # Those of a whole chunk may take gigabytes.
            rows = decoder.last_rows(model_input)
            tell = partial(self._prompt_logprobs_of, decoder.head)
            return decoder.head(_sampled(batch, rows, send)), self._reported(batch, rows, tell)
        logits = decoder.logits(model_input)
        return _sampled(batch, logits, send), self._reported(batch, logits, prompt_logprobs)

    @torch.inference_mode()
    def _record(self, path: ExecutionPath, config: EngineConfig) -> DecodeGraphs | None:
        """Record the decode steps that most requests need; None where none is to be recorded."""
        if path.kernels is None or path.recorder is None or not self._decoder.is_recordable:
            return None
        make_step = partial(
            StaticDecode,
            kernels=path.kernels,
            decoder=self._decoder,
            cache=self._cache,
            slots=self._slots,
            sampling=self._sampling,
            to_device=self._to_device,
        )
        graphs = DecodeGraphs(
            make_step,
            path.recorder,
            self._sampling,
            self._to_device,
            max_num_seqs=config.max_num_seqs,
        )
        graphs.record_common()
        return graphs

    def _lay_out(self, batch: ScheduledBatch, *, has_pieces: bool) -> ModelInput:
        """Make the tensors of a batch that the slots have taken in."""
        if self._kernels is not None:
            return build_gpu_input(
                batch,
                self._slots,
                self._cache,
                self._kernels,
                self._to_device.send,
                has_flash=self._has_flash,
            )
        if isinstance(self._decoder, NativeLlamaDecoder):
            return build_native_input(batch, self._slots, self._cache, has_pieces=has_pieces)
        return build_model_input(
            batch,
            self._slots,
            self._cache,
            is_batch_invariant=self._is_batch_invariant,
            has_pieces=has_pieces,
            attend_piece=self._attend_piece,
        )

    def _run_recorded(self, decodes: Decodes, graphs: DecodeGraphs) -> StepResult | None:
        """Replay a step of decodes only; None, and nothing done, where none is recorded for it."""
        sampled_at = [position + 1 for position in decodes.positions]
        rows = graphs.run(decodes, plan_key(self._sampling, decodes.slots, sampled_at))
        if rows is None:
            return None
        return StepResult(rows, tuple(map(self._sampling.num_logprobs, decodes.slots)), {})

    def _take_in(self, batch: ScheduledBatch) -> None:
        if batch.dirty_blocks:
            self._cache.clear(self._sampling.send_ids(batch.dirty_blocks))
        self._slots.take_in(batch)
        for start in batch.starts:
            self._sampling.start(start)
            self._num_prompt_logprobs[start.slot] = start.params.prompt_logprobs or 0

    def _sample(
        self,
        batch: ScheduledBatch,
        logits: Tensor,
        reported: dict[int, RowLogprobs],
    ) -> StepResult:
        slots = list(batch.decodes.slots)
        positions = [position + 1 for position in batch.decodes.positions]
        extras: dict[int, RowExtras] = {}
        for chunk in batch.chunks:
            told = extras_of(chunk)
            for index in range(chunk.num_samples):
                if told and told[index] != _NO_EXTRAS:
                    extras[len(slots)] = told[index]
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
        places = sampled_places(batch, tokens, self._to_device.send)
        rows = places.last_rows
        last = tokens if rows is None else tokens.index_select(0, rows)
        self._slots.last_tokens.index_copy_(0, places.slots, last)
        row_slots = places.slots if places.row_slots is None else places.row_slots
        self._sampling.record(row_slots, tokens, places.counts)

    def _reported(
        self,
        batch: ScheduledBatch,
        rows: Tensor,
        tell: Callable[[Tensor, Tensor, int], RowLogprobs],
    ) -> dict[int, RowLogprobs]:
        """Tell of prompts what is asked, by sequence; tell: of some of the rows."""
        reported: dict[int, RowLogprobs] = {}
        row = len(batch.decodes)
        for chunk in batch.chunks:
            if chunk.prompt_targets is not None:
                targets = self._sampling.send_ids(chunk.prompt_targets)
                num_top = self._num_prompt_logprobs[chunk.slot]
                reported[chunk.sequence_id] = tell(rows[row : row + len(targets)], targets, num_top)
            row += num_logits(chunk)
        return reported

    def _prompt_logprobs_of(
        self, head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, num_top: int
    ) -> RowLogprobs:
        return prompt_logprobs_of(rows, head, targets, num_top, self.vocab_size)


def _sampled(
    batch: ScheduledBatch, rows: Tensor, send_ids: Callable[[Collection[int]], Tensor]
) -> Tensor:
    """Leave out the rows that only a prompt's logprobs are told from."""
    num_rows = len(batch.decodes) + sum(chunk.num_samples for chunk in batch.chunks)
    if rows.shape[0] == num_rows:
        return rows
    places = list(range(len(batch.decodes)))
    stop = len(places)
    for chunk in batch.chunks:
        stop += num_logits(chunk)
        places += range(stop - chunk.num_samples, stop)
    return rows.index_select(0, send_ids(places))


def _tells_of_prompts(batch: ScheduledBatch) -> bool:
    return any(chunk.prompt_targets is not None for chunk in batch.chunks)


def _make_cache(model: PreTrainedModel, config: EngineConfig, kept_as: KVDtype) -> KVCache:
    return KVCache(
        num_layers=num_layers(model.config),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_kv_heads=num_kv_heads(model.config),
        head_dim=head_dim(model.config),
        kept_as=kept_as,
        dtype=attention_dtype(model),
        device=model.device,
    )


def _host_side(
    device: torch.device, config: EngineConfig, path: ExecutionPath
) -> tuple[ToDevice, ResultSections | None]:
    """Make the host's memory for what steps send and give; steps that are not queued need none."""
    if not path.is_overlapped:
        return DirectMemory(), None
    memory = memory_beside(device)
    num_bytes = section_bytes(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
    )
    return HostRing(device, memory, num_bytes), ResultSections(memory, config.max_num_seqs)


def _with_memory(run: Callable[[], Given]) -> Given:
    """Run a step, or read it; say in the engine's words that there was too little memory."""
    try:
        return run()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(str(error)) from error
        raise
