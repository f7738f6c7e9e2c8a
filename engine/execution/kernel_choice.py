"""Which of several kernels compute what on this machine, decided when an engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.attention.kv_cache import head_dim, num_kv_heads
from engine.attention.windows import attend_in_windows, ways_to_attend
from engine.layers.native_llama import NativeLlamaDecoder
from engine.layers.ways import choose_ways
from engine.measured.choices import Choices

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PretrainedConfig

    from engine.attention.windows import AttendPiece
    from engine.config import EngineConfig
    from engine.execution.decoder import Decoder
    from engine.execution.path import ExecutionPath

# What attention is measured by: rows of a prompt that begins, and of one that goes on.
_ATTENDING_ROWS = 256
_ATTENDING_STARTS = (0, 768)


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What was decided."""

    told: str  # in words; the same wherever the same was chosen
    attend_piece: AttendPiece  # by PyTorch, with pieces of prompts


def choose_kernels(
    decoder: Decoder,
    model_config: PretrainedConfig,
    config: EngineConfig,
    path: ExecutionPath,
) -> KernelChoice:
    """Decide which ways products and attention take, measuring them where the engine may."""
    choices = Choices(
        is_measured=config.kernel_choice == "measured" and not config.is_batch_invariant,
        folder=config.kernel_choice_folder,
    )
    choose_ways(
        decoder.linears(),
        choices,
        max_rows=config.max_num_batched_tokens,
        has_native=path.has_native,
    )
    attend: AttendPiece = attend_in_windows
    # Row by row there are no pieces; a GPU attends in a way of its own, and so do kernels in C++.
    has_own_way = path.kernels is not None or isinstance(decoder, NativeLlamaDecoder)
    if not has_own_way and not path.is_overlapped and not config.is_batch_invariant:
        attend = _choose_attention(choices, model_config)
    choices.finish()
    return KernelChoice(choices.text, attend)


def _choose_attention(choices: Choices, model_config: PretrainedConfig) -> AttendPiece:
    """Choose how pieces of prompts are attended to."""
    ways = ways_to_attend()
    text = model_config.get_text_config(decoder=True)
    num_heads, width = text.num_attention_heads, head_dim(model_config)
    shared = num_kv_heads(model_config)
    random = torch.Generator().manual_seed(0)
    query = torch.randn(_ATTENDING_ROWS, num_heads, width, generator=random)
    seen = torch.randn(max(_ATTENDING_STARTS) + _ATTENDING_ROWS, 2, shared, width, generator=random)
    calls: dict[str, Callable[[], object]] = {
        name: partial(_attend_here_and_there, attend, query, seen) for name, attend in ways.items()
    }
    name = f"prompts' attention, {num_heads} heads of {width} to {shared}"
    return ways[choices.fastest(name, calls)]


@torch.inference_mode()
def _attend_here_and_there(attend: AttendPiece, query: Tensor, seen: Tensor) -> None:
    """Attend with as many rows at the beginning of a prompt and further on."""
    scale = query.shape[-1] ** -0.5
    for start in _ATTENDING_STARTS:
        attend(query, seen[: start + query.shape[0]], start, scale, None)
