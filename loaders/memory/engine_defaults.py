"""What an engine takes where nothing else is asked: plans count by it, and engines start with it.

Loaders cannot look at the engine or the service, so each such fact stands here, and the service
(`service.worker.sizing`, `service.settings`) takes it from here. Without PyTorch, since a plan does
without; imports nothing of the loaders either, so that settings may read it.
"""

from __future__ import annotations

from typing import Literal

DeviceKind = Literal["cuda", "cpu"]

BLOCK_SIZE = 16  # tokens of a KV block
# Tokens that a step computes at most: half a second's reading on two cores, some tens of
# milliseconds on a GPU.
MAX_NUM_BATCHED_TOKENS: dict[DeviceKind, int] = {"cpu": 512, "cuda": 2048}
MAX_NUM_SEQS = 32  # sequences that run together (`max_num_seqs`)
# What keys and values are kept in; on CUDA the model's own type, which is of this size.
KV_DTYPE: dict[DeviceKind, str] = {"cpu": "float32", "cuda": "float16"}
# On a CPU other programs live in the same memory, and the cache is filled with zeros at the start
# (2 GiB take about a second): no more than this, unless one sequence of full length needs it.
CPU_KV_BYTES = 2 * 1024**3
# Of a GPU's memory, for weights and KV cache together (`gpu_memory_utilization`).
GPU_SHARE = 0.9
