"""What a loaded variant takes, beside what was predicted: told to people, recorded for plans.

Counted as growth over what the process (CPU) or the device (CUDA) held before loading, so that it
means the same in a process of its own and in a thread of the server. Keys and values are told
apart: how many there are is a setting. A CPU is looked at after the self-test's prompt, whose
activations its allocator keeps; a GPU at rest, with its graphs recorded and nothing else cached.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil
import structlog
import torch

from engine.attention.kv_cache import kv_block_bytes, resolve_kv_dtype
from loaders.errors import LoadError
from loaders.memory.device import CPU_LIBRARY_BYTES, Demand, prepare
from loaders.model.self_test.tokens import NUM_PROMPT_TOKENS
from loaders.model.stock import STOCK
from service.worker.step_reserve import backend_to_count, facts_of_device
from service.worker_protocol.model_description import MemoryReport

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from loaders.load import LoadedModel
    from loaders.memory.device import MemoryBreakdown
    from loaders.records import Records

log = structlog.get_logger(__name__)


class MemoryMeter:
    """Remembers what was in use before a variant is loaded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._used()

    def growth(self) -> int:
        """Return how much more is in use now."""
        return self._used() - self._before

    def _used(self) -> int:
        if self._device.type == "cuda":  # this process's own: others use the device, too
            torch.cuda.empty_cache()  # left by tests, of sizes that nothing tells
            return int(torch.cuda.memory_reserved(self._device))
        return int(psutil.Process().memory_info().rss)


def compare(
    meter: MemoryMeter, loaded: LoadedModel, config: EngineConfig, *, backend: str
) -> MemoryReport | None:
    """Measure now, and predict what was to be measured; None for what no plan is made for.

    On a CPU nothing longer than the self-test's prompt has been read so far, and so little is
    predicted for activations, too. backend: as it was asked for.
    """
    if loaded.provenance.num_offloaded or backend == STOCK:
        return None  # a part lies elsewhere, or in layouts that are not known here
    device = loaded.model.device.type
    kv_dtype = resolve_kv_dtype(loaded.model, config.kv_dtype)
    block_bytes = kv_block_bytes(loaded.model.config, config.block_size, kv_dtype)
    kv_cache = (config.num_blocks + 1) * block_bytes
    try:
        predicted = replace(_predict(loaded, config, backend), kv_cache=kv_cache)
    except LoadError as error:
        log.warning("memory_not_predicted", reason=str(error))
        return None
    unseen = CPU_LIBRARY_BYTES
    if device == "cuda":
        # CUDA's context is there before anything is loaded, as the libraries are; and what the
        # driver keeps of graphs is not PyTorch's to count.
        unseen = predicted.context + predicted.graph_launches
    report = MemoryReport(
        device=device,
        predicted=predicted.total,
        measured=meter.growth() + unseen,
        kv_cache=kv_cache,
        breakdown=asdict(predicted),
    )
    log.info(
        "memory_measured",
        predicted_gb=round(report.predicted / 1e9, 2),
        measured_gb=round(report.measured / 1e9, 2),
        off_by=f"{report.error:+.0%}",
    )
    return report


def _predict(loaded: LoadedModel, config: EngineConfig, backend: str) -> MemoryBreakdown:
    is_gpu = loaded.model.device.type == "cuda"
    prepared = prepare(
        loaded.tensors,
        loaded.model.config.to_dict(),
        loaded.quantization,
        facts_of_device(loaded.model.device),
        backend=backend_to_count(backend, loaded) if is_gpu else backend,
    )
    if not is_gpu:
        demand = Demand(
            min(config.max_model_len, NUM_PROMPT_TOKENS), max_num_seqs=config.max_num_seqs
        )
        return prepared.on_devices(demand)[0]
    has_graphs = not (config.enforce_eager or config.is_batch_invariant)
    return prepared.at_rest(
        Demand(config.max_model_len, max_num_seqs=config.max_num_seqs, has_graphs=has_graphs)
    )


def record(report: MemoryReport, loaded: LoadedModel, records: Records) -> None:
    """Keep it for later plans, keys and values left out.

    Nothing is kept of a thread of the server: others load there, and count as this one's.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    provenance = loaded.provenance
    records.of(provenance.file).write(
        provenance.commit,
        f"memory:{report.device}:{provenance.backend}",
        {
            "predicted": report.predicted - report.kv_cache,
            "measured": report.measured - report.kv_cache,
            "kv_cache": report.kv_cache,
            "date": datetime.now(UTC).date().isoformat(),
        },
    )
