"""Part "peers": what else is on the machine, on the same weights in the same run.

Transformers' own `generate`, and its continuous batching, with the weights unpacked to halves:
without further packages that is what it runs. Four times the bytes of a step, and no kernel of
ours. A peer that cannot run is told with its reason, and is no failure.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu.model_files import model_files
from loaders.load import load
from loaders.model.packed_linear import packed_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.context import Context

PROMPT_TOKENS, DRY_PROMPT_TOKENS = 384, 16
NEW_TOKENS, DRY_NEW_TOKENS = 64, 4
BATCHES, DRY_BATCHES = (1, 8, 32), (1,)
# Of its own cache; else it takes most of the machine's memory, which takes a CPU half a minute.
DRY_CACHE = {"num_blocks": 16, "max_batch_tokens": 64}


def run(context: Context) -> None:
    """Measure each peer at several batches."""
    files = model_files(context)
    loaded = load(
        str(files.folder),
        device=context.device,
        backend="reference",
        cache_dir=context.workspace,
    )
    context.tell("unpacking the weights")
    model: Any = unpacked(loaded.model)
    rows: list[dict[str, Any]] = []
    for batch in DRY_BATCHES if context.is_dry else BATCHES:
        length = DRY_PROMPT_TOKENS if context.is_dry else PROMPT_TOKENS
        prompts = [random.choices(range(files.shape.vocab_size), k=length) for _ in range(batch)]
        for name, answer in (("generate", generate), ("continuous batching", generate_batch)):
            context.tell(f"{name}, {batch} together")
            rows.append({"peer": f"Transformers' {name}", "batch": batch})
            rows[-1].update(_measure(lambda a=answer, p=prompts: a(model, p, context)))
            context.save(rows=rows)
        model.destroy_cached_continuous_batching_manager()  # it was sized for this batch
    context.save(summary="; ".join(_tell(row) for row in rows if row["batch"] == 1))


def unpacked(model: nn.Module) -> nn.Module:
    """Put an ordinary layer in halves in place of each packed one."""
    # On a CPU, where it is a dry run, Transformers has no products of halves with floats.
    dtype = next(model.parameters()).dtype if torch.cuda.is_available() else torch.float32
    for name, layer in packed_layers(model).items():
        assert layer.kernel is not None
        weight = layer.kernel.dequantize().to(dtype).contiguous()
        has_bias = layer.bias is not None
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=has_bias, dtype=dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
    return nn.Module.to(model, dtype)


def generate(model: Any, prompts: list[list[int]], context: Context) -> int:
    """Answer greedily; return how many tokens came."""
    num_tokens = DRY_NEW_TOKENS if context.is_dry else NEW_TOKENS
    ids = torch.tensor(prompts, device=context.device)
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        pad_token_id=0,
    )
    return int(answer.shape[0] * (answer.shape[1] - ids.shape[1]))


def generate_batch(model: Any, prompts: list[list[int]], context: Context) -> int:
    """Answer greedily by continuous batching; return how many tokens came."""
    num_tokens = DRY_NEW_TOKENS if context.is_dry else NEW_TOKENS
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=num_tokens, eos_token_id=-1, pad_token_id=0
    )
    cache = ContinuousBatchingConfig(**DRY_CACHE) if context.is_dry else None
    found = model.generate_batch(
        prompts,
        generation_config=settings,
        continuous_batching_config=cache,
        persistent_manager=True,  # whose start and graphs are in the run that warms up
    )
    return sum(len(answer.generated_tokens) for answer in found.values())


@torch.no_grad()  # continuous batching changes its tensors in threads of its own
def _measure(answer: Callable[[], int]) -> dict[str, Any]:
    """Time a second run: the first one warms up."""
    try:
        answer()
        began = time.perf_counter()
        num_tokens = answer()
        seconds = time.perf_counter() - began
    except Exception as error:
        return {"tokens_per_s": None, "reason": f"{type(error).__name__}: {error}"[:300]}
    if not num_tokens:
        return {"tokens_per_s": None, "reason": "it gave no tokens; its log says why"}
    return {"tokens_per_s": round(num_tokens / seconds, 1), "num_tokens": num_tokens}


def _tell(row: dict[str, Any]) -> str:
    if row["tokens_per_s"] is None:
        return f"{row['peer']} did not run"
    return f"{row['peer']} {row['tokens_per_s']} tok/s"
