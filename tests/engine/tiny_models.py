"""Small random models of many families, and what `generate` makes of them."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from engine.config import EngineConfig
from engine.core import Engine
from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.layers.weights import LinearWeight
    from engine.sampling_params import SamplingParams

VOCAB_SIZE = 311
_sequence_ids = itertools.count()


def _sizes(**changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return {name: value for name, value in (sizes | changes).items() if value != "default"}


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """Name a rope type as configurations do."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


# Where the context ends at 256: angles of the first 256 positions are fixed.
_LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 256,
    "factor": 4.0,
    "short_factor": [1.0 + 0.25 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}

FUSED: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_sizes()),
    "llama with biases and its own head size": LlamaConfig(
        **_sizes(attention_bias=True, mlp_bias=True, head_dim=32)
    ),
    "llama with llama3 rope": LlamaConfig(**_sizes(rope_parameters=_LLAMA3_ROPE)),
    "llama with linear rope": LlamaConfig(**_sizes(**_rope("linear", factor=2.0))),
    "llama with yarn rope": LlamaConfig(
        **_sizes(**_rope("yarn", factor=8.0, original_max_position_embeddings=32))
    ),
    "llama with dynamic rope": LlamaConfig(**_sizes(**_rope("dynamic", factor=2.0))),
    "llama with longrope": LlamaConfig(
        **_sizes(max_position_embeddings=1024, **_rope("longrope", **_LONGROPE))
    ),
    "mistral with a window": MistralConfig(**_sizes(sliding_window=9)),
    "mistral without": MistralConfig(**_sizes(sliding_window=None)),
    "qwen2": Qwen2Config(**_sizes()),
    "qwen2 with windows in some layers": Qwen2Config(
        **_sizes(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    ),
    "qwen3, tied": Qwen3Config(**_sizes(head_dim=32, tie_word_embeddings=True)),
}
UNFUSED: dict[str, PretrainedConfig] = {
    "phi": PhiConfig(**_sizes()),
    "phi with dynamic rope": PhiConfig(
        **_sizes(**_rope("dynamic", factor=2.0, partial_rotary_factor=0.5))
    ),
    "starcoder2 with a window": Starcoder2Config(**_sizes(sliding_window=9)),
    "gpt-bigcode": GPTBigCodeConfig(
        **_sizes(num_key_value_heads="default", intermediate_size="default"), n_inner=128
    ),
    "gpt-neox": GPTNeoXConfig(**_sizes(num_key_value_heads="default")),
    "gpt2": GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "llama with another activation": LlamaConfig(**_sizes(hidden_act="gelu")),
}
CAPPED = Gemma2Config(**_sizes(head_dim=16))


def make_model(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Weights wide enough that leading logits don't nearly tie."""
    generator = torch.Generator().manual_seed(seed)
    # A configuration remembers its attention implementation; a copy keeps the tests apart.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.2)
            else:
                parameter.add_(noise * 0.1)
    return model


def make_prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def generate(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Transformers' own greedy answer."""
    ids = torch.tensor([prompt])
    model_: Any = model
    answer = model_.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = answer[0, len(prompt) :].tolist()
    return tokens


def make_engine(model: PreTrainedModel, **changes: Any) -> Engine:
    sizes = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "max_model_len": 128,
        "num_blocks": 80,
    }
    return Engine(model, EngineConfig(**(sizes | changes)))


def run_engine(
    engine: Engine, requests: Sequence[tuple[Sequence[int], SamplingParams]]
) -> list[list[int]]:
    """Run requests together; the tokens of each."""
    sequences = [
        engine.add(
            SequenceRequest(
                sequence_id=next(_sequence_ids), prompt_token_ids=tuple(prompt), params=params
            )
        )
        for prompt, params in requests
    ]
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, SequenceStarted | TokenOutput)
    engine.scheduler.check()
    return [sequence.output_token_ids for sequence in sequences]


class RowByRowLinear(nn.Module):
    """A linear weight that multiplies one row at a time, so that no row feels its neighbours."""

    input_permutation = None
    output_permutation = None
    num_invariant_rows = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.linear = linear
        self.rows_seen: list[Tensor] = []  # outputs, a tensor for each call

    def matmul(self, x: Tensor) -> Tensor:
        rows = [
            functional.linear(row.unsqueeze(0), self.linear.weight, self.linear.bias) for row in x
        ]
        self.rows_seen.append(torch.cat(rows))
        return self.rows_seen[-1].clone()

    def fuse_with(self, others: Sequence[LinearWeight]) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.matmul(x.flatten(0, -2)).view(*x.shape[:-1], -1)


def make_row_by_row(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every linear layer; the model computes the same up to rounding."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, RowByRowLinear(module))
    return model
