"""Runs scheduled batches on the model and samples from them.

Keeps what must stay on the device between steps: the KV cache, and each slot's last token. So a
step can be launched before anybody has read what the one before it sampled. Which sequences run is
decided in `scheduler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.batch import SampledTokens
from engine.decoder import make_decoder
from engine.errors import UnsupportedModelError
from engine.kv_cache import KVCache, head_dim, num_kv_heads, num_layers
from engine.model_input import build_model_input, model_order
from engine.sampler import build_sampling_input, is_finite, sample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.batch import ScheduledBatch
    from engine.config import EngineConfig


class PendingStep:
    """A launched step whose result has not been read yet."""

    def __init__(
        self, batch: ScheduledBatch, tokens: Tensor, finite: Tensor, cache: KVCache
    ) -> None:
        self.batch = batch
        self._tokens = tokens  # [num_seqs] int64, in the batch's order
        self._finite = finite  # [num_seqs] bool
        self._cache = cache

    def result(self) -> SampledTokens:
        """Wait for the step and read what it sampled."""
        rows = zip(self.batch.entries, self._tokens.tolist(), self._finite.tolist(), strict=True)
        token_ids, failed = {}, set()
        for entry, token_id, finite in rows:
            if finite:
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
        dtype = torch.float32 if device.type == "cpu" else model.dtype
        self._decoder = make_decoder(model, config.max_model_len)
        self._cache = KVCache(
            num_layers=num_layers(model.config),
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            num_kv_heads=num_kv_heads(model.config),
            head_dim=head_dim(model.config),
            dtype=dtype,
            device=device,
        )
        self._last_tokens = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step. Where the device runs by itself this returns before the step is done."""
        batch = model_order(batch)
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
        return PendingStep(batch, tokens, is_finite(logits), self._cache)
