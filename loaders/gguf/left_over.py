"""What a GGUF file's tensors are that a model has no place for.

A few are known to say nothing that the model lacks; they are left over, and logged. Every other
one is refused by its name, with what it seems to be.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog

from loaders.errors import CheckpointError
from loaders.gguf.architectures import layer_of
from loaders.gguf.rope import ROPE_FACTORS
from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

log = structlog.get_logger(__name__)

ROTATION_TABLES = "rotation tables, which the model computes itself"
READ_WITH_SETTINGS = "factors of RoPE, read with the settings"
PREDICTS_FURTHER = "layers that predict further tokens (NextN)"
BEYOND = "layers beyond block_count"
_ROTATION_TABLE = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?")
# What a name says, the more special first.
_SEEMS = (
    (r"\.nextn\.", "a part of a layer that predicts further tokens (NextN)"),
    (r"_exps(\.|_|$)|_shexp\.|ffn_gate_inp|exp_probs_b|ffn_\w+\.\d+\.", "a mixture's expert"),
    (r"\.lora_[ab]$", "a part of a LoRA adapter"),
    (r"\.(input_)?scale\d?$|_scale\.", "a scale of weights that are packed another way"),
    (r"attn_sinks", "a sink of the attention"),
    (r"\.ssm_|\.time_mix_|\.channel_mix_|\.shortconv\.", "a part of a layer with a state"),
    (r"^(v|mm|a|resampler|model\.image\w*)\.", "a part of an encoder of images or sound"),
    (r"^(enc|dec)\.", "a part of an encoder beside a decoder"),
    (r"^cls(\.|$)|^dense_", "the head of a model that ranks or embeds"),
    (r"^position_embd|^token_types", "an embedding of positions or of kinds of tokens"),
    (r"norm(_\d)?\.bias$", "a norm's bias"),
    (r"norm(_\d)?\.weight$", "a further norm"),
    (r"attn_qkv|attn_(q|kv|k|v)(_\w+)?\.", "a projection of the attention in another form"),
    (r"\.bias$", "a bias"),
)


def kind_of_left_over(name: str, num_layers: int, num_further: int) -> str | None:
    """Say why a tensor may be left over; None where nothing known allows it.

    num_further: layers behind the model's that its settings say predict further tokens.
    """
    if name in ROPE_FACTORS:
        return READ_WITH_SETTINGS
    if _ROTATION_TABLE.fullmatch(name):
        return ROTATION_TABLES
    layer = layer_of(name)
    if layer is None or layer < num_layers:
        return None
    return PREDICTS_FURTHER if layer < num_layers + num_further else BEYOND


def log_left_over(left_over: Mapping[str, str]) -> None:
    """Log what is left over, by kind; left_over: a tensor's name → why."""
    for kind in sorted(set(left_over.values())):
        names = [name for name, why in left_over.items() if why == kind]
        log.info("tensors_left_over", kind=kind, count=len(names), first=names[:4])


def suspicions_of(left_over: Mapping[str, str], num_layers: int) -> tuple[Suspicion, ...]:
    """Doubt settings that leave whole layers unused for no known reason."""
    names = [name for name, why in left_over.items() if why == BEYOND]
    if not names:
        return ()
    layers = len({layer_of(name) for name in names})
    return (
        Suspicion(
            "unused_layers",
            f"the GGUF metadata says {num_layers} layers, and the file holds {layers} more"
            f" ({len(names)} tensors, {names[0]} first), which are not used",
        ),
    )


def refusal(names: Iterable[str], model_type: str) -> CheckpointError:
    """Make the error for tensors that such a model has no place for."""
    every = list(names)
    more = f" (and {len(every) - 1} more)" if len(every) > 1 else ""
    return CheckpointError(
        f"the GGUF file holds {every[0][:120]}, which a {model_type} model has no place for; it"
        f" seems to be {_seems(every[0])}{more}; another program wrote it for another kind of model"
    )


def _seems(name: str) -> str:
    return next((what for pattern, what in _SEEMS if re.search(pattern, name)), "of no known kind")
