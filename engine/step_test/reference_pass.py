"""The first layers of a model in float32, by Transformers' own modules and PyTorch's attention.

Computed before the engine takes the model over, so nothing of the engine's can hide in it. Each
weight is dequantised when it is multiplied by and let go again: the pass takes the memory of one.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.layers.truncation import only_first_layers
from engine.layers.weights import LinearWeight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    # A packed layer's weight [out, in] and bias, float32, in the model's own order.
    Dequantize: TypeAlias = Callable[[nn.Module], tuple[Tensor, Tensor | None]]

NUM_LAYERS = 2
NUM_PROMPTS = 2
PROMPT_TOKENS = 24
NUM_TOKENS = 4
# Outputs that a dense weight is widened for at once: a head of 128 000 tokens would take 2 GB.
PIECE_OUTPUTS = 8192
# Weights that are kept from one pass to the next: 4 MB each, and dequantised in no time anyway but
# in Triton's interpreter.
KEPT_WEIGHTS = 2**20


@dataclass(frozen=True, slots=True)
class ReferencePass:
    """What the first layers say to some prompts."""

    num_layers: int
    prompts: tuple[tuple[int, ...], ...]  # all of one length
    token_ids: Tensor  # [prompts, NUM_TOKENS] int64: the greedy answers
    # [prompts, PROMPT_TOKENS - 1 + NUM_TOKENS, vocab] float32: of the tokens behind the first, on
    # the CPU.
    logprobs: Tensor


@torch.inference_mode()
def run_reference_pass(
    model: PreTrainedModel, dequantize: Dequantize, *, max_model_len: int
) -> ReferencePass:
    """Answer prompts by a model that is whole, and leave it so.

    Raises UnsupportedArchitectureError where its first layers cannot be had alone.
    """
    run: Any = model
    num_layers = min(NUM_LAYERS, model.config.get_text_config(decoder=True).num_hidden_layers)
    prompts = _prompts(model, max_model_len)
    ids = torch.tensor(prompts, device=model.device)
    with only_first_layers(model, num_layers), widened(model, dequantize):
        for _ in range(NUM_TOKENS):
            logits: Tensor = run(input_ids=ids, use_cache=False).logits.float()
            ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
    return ReferencePass(
        num_layers,
        prompts,
        ids[:, -NUM_TOKENS:].cpu(),
        logits.log_softmax(dim=-1).cpu(),
    )


def _prompts(model: PreTrainedModel, max_model_len: int) -> tuple[tuple[int, ...], ...]:
    """Draw tokens from all of the vocabulary."""
    embedding: Any = model.get_input_embeddings()
    vocab_size: int = embedding.weight.shape[0]
    length = min(PROMPT_TOKENS, max_model_len - NUM_TOKENS)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocab_size, (NUM_PROMPTS, length), generator=generator)
    return tuple(tuple(row) for row in drawn.tolist())


@contextmanager
def widened(model: PreTrainedModel, dequantize: Dequantize) -> Iterator[None]:
    """Have a model compute in float32 throughout, whatever its weights are kept in."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handle = module.register_forward_hook(_widen_rows)
                stack.callback(handle.remove)
            elif isinstance(module, (nn.Linear, LinearWeight)):
                stack.enter_context(_multiplying(module, dequantize))
            else:
                stack.enter_context(_wide_vectors(module))
        yield


def _widen_rows(module: nn.Module, inputs: object, rows: Tensor) -> Tensor:  # noqa: ARG001
    return rows.float()


@contextmanager
def _multiplying(module: nn.Module, dequantize: Dequantize) -> Iterator[None]:
    kept: list[tuple[Tensor, Tensor | None]] = []

    def multiply(x: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return _multiply_dense(module, x)
        weight, bias = kept[0] if kept else dequantize(module)
        if weight.numel() <= KEPT_WEIGHTS and not kept:
            kept.append((weight, bias))
        return functional.linear(x, weight, bias)

    module.forward = multiply
    try:
        yield
    finally:
        del module.forward  # the class's own is seen again


def _multiply_dense(linear: Any, x: Tensor) -> Tensor:
    products = [functional.linear(x, piece.float()) for piece in linear.weight.split(PIECE_OUTPUTS)]
    product = torch.cat(products, dim=-1)
    return product if linear.bias is None else product + linear.bias.float()


@contextmanager
def _wide_vectors(module: nn.Module) -> Iterator[None]:
    """Widen a norm's weights; larger tensors are left as they are."""
    kept = {
        parameter: parameter.data
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 1 and parameter.is_floating_point()
    }
    for parameter in kept:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data
