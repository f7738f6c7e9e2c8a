"""Runs scheduled batches on the model and samples from them.

Keeps what must stay on the device between steps: the KV cache, and each slot's last token. So a
step can be launched before anybody has read what the one before it sampled. Which sequences run is
decided in `scheduler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engine.batch import SampledTokens
from engine.decoder import make_decoder
from engine.errors import UnsupportedModelError
from engine.host_memory import keep_freed_memory
from engine.kv_cache import KVCache, head_dim, kv_dtype, num_kv_heads, num_layers
from engine.model_input import build_model_input, model_order
from engine.sampler import build_sampling_input, is_finite, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.batch import ScheduledBatch
    from engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class SampledRows:
    """What a step sampled, still on the device; rows in the batch's order."""

    tokens: Tensor  # [num_seqs] int64
    is_finite: Tensor  # [num_seqs] bool: whether the row's logits held neither NaN nor Inf


class PendingStep:
    """A launched step whose result has not been read yet."""

    def __init__(
        self, batch: ScheduledBatch, sampled: Callable[[], SampledRows], cache: KVCache
    ) -> None:
        self.batch = batch
        self._sampled = sampled
        self._cache = cache

    def result(self) -> SampledTokens:
        """Wait for the step and read what it sampled; call it once."""
        sampled = self._sampled()
        tokens, finite = sampled.tokens.tolist(), sampled.is_finite.tolist()
        token_ids, failed = {}, set()
        for entry, token_id, is_fine in zip(self.batch.entries, tokens, finite, strict=True):
            if is_fine:
                token_ids[entry.sequence_id] = (token_id,)
            else:
                failed.add(entry.sequence_id)
                self._cache.clear(entry.block_table)  # while these blocks are still its own
        return SampledTokens(token_ids, frozenset(failed))


class ModelRunner:
    """Owns the model, the KV cache and what is resident by slot."""

    def __init__(self, model: PreTrainedModel, config: EngineConfig) -> None:
        """Take the model over; raises `UnsupportedModelError`."""
        embedding: Any = model.get_input_embeddings()
        self.vocab_size: int = embedding.weight.shape[0]
        self._is_batch_invariant = config.is_batch_invariant
        device = model.device
        if device.type == "cpu":
            keep_freed_memory()
        self._decoder = make_decoder(model, config.max_model_len)
        self._cache = KVCache(
            num_layers=num_layers(model.config),
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            num_kv_heads=num_kv_heads(model.config),
            head_dim=head_dim(model.config),
            dtype=kv_dtype(model),
            device=device,
        )
        self._last_tokens = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=device)

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step, without waiting for it."""
        batch = model_order(batch)
        if self._cache.device.type == "cpu":
            # Nothing runs beside us here, so the step runs when its result is asked for: a token is
            # handed out before the next one is computed, not after.
            return PendingStep(batch, partial(self._run, batch), self._cache)
        sampled = self._run(batch)  # queued on the device
        return PendingStep(batch, lambda: sampled, self._cache)

    @torch.inference_mode()
    def _run(self, batch: ScheduledBatch) -> SampledRows:
        model_input = build_model_input(
            batch, self._last_tokens, self._cache, is_batch_invariant=self._is_batch_invariant
        )
        settings = build_sampling_input(batch, self.vocab_size, self._cache.device)
        logits = self._decoder.logits(model_input)
        if logits.shape[-1] > self.vocab_size:
            raise UnsupportedModelError(
                f"the model's head gives {logits.shape[-1]} logits, its embedding has"
                f" {self.vocab_size} rows; a sampled id could lie outside it"
            )
        tokens = sample(logits, settings)
        slots = [entry.slot for entry in batch.entries]
        self._last_tokens.index_copy_(0, torch.tensor(slots, device=tokens.device), tokens)
        return SampledRows(tokens, is_finite(logits))
