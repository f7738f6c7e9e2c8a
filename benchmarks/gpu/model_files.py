"""The 7B model that several parts run on, written once for all of them.

Act order by default: that is what most servers refuse, and it must cost nothing here.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from benchmarks.gpu.checkpoint import write_checkpoint
from benchmarks.gpu.limit import CODELLAMA_7B, ModelShape

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.gpu.context import Context

MAX_CONTEXT, DRY_MAX_CONTEXT = 8192, 512
TINY = ModelShape(
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=512,
    vocab_size=1024,
    bits=4,
    group_size=128,
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint of random numbers."""

    folder: Path
    shape: ModelShape
    num_bytes: int  # of its weights
    write_s: float  # 0 where another part had written it


def model_files(context: Context, shape: ModelShape | None = None) -> ModelFiles:
    """Return the checkpoint, written if no other part did so; shape: instead of CodeLlama 7B's."""
    if shape is None:
        shape = TINY if context.is_dry else CODELLAMA_7B
    name = f"model-{shape.num_layers}x{shape.hidden_size}"
    folder = context.workspace / name
    note = context.workspace / f"{name}.json"
    if note.exists():
        return ModelFiles(folder, shape, json.loads(note.read_text())["num_bytes"], 0.0)
    context.tell("writing the checkpoint")
    began = time.perf_counter()
    num_bytes = write_checkpoint(
        folder,
        shape,
        max_context=DRY_MAX_CONTEXT if context.is_dry else MAX_CONTEXT,
        has_act_order=True,
    )
    seconds = time.perf_counter() - began
    # Last, so that a part that was ended while it wrote leaves no half a model to the next.
    note.write_text(json.dumps({"num_bytes": num_bytes, "shape": asdict(shape)}))
    return ModelFiles(folder, shape, num_bytes, round(seconds, 2))
