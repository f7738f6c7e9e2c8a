"""What an engine's process tells the API's process of the model that it has loaded.

Enough to read the model's small files and to say where answers come from; the weights stay there.
"""

from __future__ import annotations

import msgspec

from engine.encoded import EncodedModelDescription
from loaders.checkpoint.generation_defaults import GenerationDefaults
from loaders.reports.self_test import SelfTestReport
from loaders.reports.suspicion import Suspicion


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a variant takes once its engine has answered the self-test's prompt.

    Long prompts need more for activations, as `tetrad plan` counts.
    """

    device: str  # cpu or cuda
    predicted: int
    measured: int
    kv_cache: int  # part of both
    breakdown: dict[str, int]  # of what was predicted; `context` is the process or CUDA's context

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was measured."""
        return (self.predicted - self.measured) / self.measured


class CacheDescription(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant's KV cache is made."""

    num_blocks: int
    block_size: int  # tokens
    dtype: str
    has_prefix_cache: bool  # sequences of different requests share prefixes


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model in plain values."""

    # Where it came from
    repo: str
    revision: str | None
    commit: str | None
    folder: str  # of its files, on this machine
    quantization: str
    # How it runs
    backend: str
    dtype: str
    device: str
    is_batch_invariant: bool
    # What its config says
    model_type: str
    vocab_size: int | None
    num_hidden_layers: int | None

    defaults: GenerationDefaults
    arithmetic: str = ""  # what else decides how sums round, in words; see `worker.arithmetic`
    self_test: SelfTestReport | None = None  # None where none was made
    memory: MemoryReport | None = None  # None where it could not be predicted
    cache: CacheDescription | None = None
    file: str | None = None  # of a GGUF variant: its file
    suspicions: tuple[Suspicion, ...] = ()  # reasons to doubt that the files were read right
    unsupported: str | None = None  # what of a GPU's kernels this one cannot run; None: nothing
    shortened: str | None = None  # why the context is shorter than the model's own; None: it is not

    def encode(self) -> EncodedModelDescription:
        return EncodedModelDescription(msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, encoded: EncodedModelDescription) -> ModelDescription:
        return msgspec.msgpack.decode(encoded, type=cls)
