"""What a loaded model says to a fixed prompt: numbers at all, and the tokens it said before.

Greedy tokens, eight of them, through Transformers' own model, so that nothing of the engine's can
hide what a kernel did.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from loaders.model.packed_linear import PackedLinear
from loaders.reports.self_test import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loaders.model.self_test.reference_weights import ReferenceWeight
    from loaders.records import Records

NUM_PROMPT_TOKENS = 64
NUM_TOKENS = 8
# Two logits that are nearer than this share of the logits' spread may change places with the number
# of threads or the processor: activations rounded to bfloat16 move logits by up to 0.03 of it
# (tests/loaders/test_load.py).
TIE = 0.1
_PROMPT = (
    "The lighthouse keeper climbed the hundred and twelve steps every evening, lit the lamp, and"
    " wrote one line in the book: the wind, the sea, and the names of the ships that passed. In the"
    " winter of 1911 nobody passed for nineteen days, so he counted waves instead: def"
    " count(waves): return sum(1 for wave in waves). When spring came, the first ship brought"
    " letters, flour, and"
)


@dataclass(frozen=True, slots=True)
class GreedyContinuation:
    """A greedy continuation."""

    token_ids: tuple[int, ...]
    gaps: tuple[float, ...]  # each first logit's lead over the second, as a share of their spread


def prompt_for(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Return the fixed prompt's token ids, as many as it always has (fewer in a tiny context)."""
    config = model.config.get_text_config(decoder=True)
    room = int(getattr(config, "max_position_embeddings", None) or 2**31) - NUM_TOKENS
    known = [i for i in tokenizer(_PROMPT)["input_ids"] if 0 <= i < config.vocab_size]
    ids = known or list(range(config.vocab_size))
    while len(ids) < NUM_PROMPT_TOKENS:
        ids = ids + ids
    return ids[: max(1, min(NUM_PROMPT_TOKENS, room))]


@torch.inference_mode()
def answer(model: PreTrainedModel, prompt_ids: Sequence[int]) -> tuple[GreedyContinuation, Tensor]:
    """Continue the prompt; return that, and the logits [tokens, vocab] float32 it was picked by."""
    # Called as it is, not through `generate`, which would apply the model's own settings.
    run: Any = model
    step = torch.tensor([list(prompt_ids)], device=model.device)
    cache, rows = None, []
    for _ in range(NUM_TOKENS):
        output = run(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        rows.append(output.logits[0, -1].float().cpu())
        step = rows[-1].argmax().to(model.device).view(1, 1)
    logits = torch.stack(rows)
    return GreedyContinuation(tuple(logits.argmax(dim=-1).tolist()), tuple(_leads(logits))), logits


def _leads(logits: Tensor) -> list[float]:
    first, second = logits.topk(min(2, logits.shape[-1]), dim=-1).values.unbind(-1)
    lead: list[float] = ((first - second) / logits.std(dim=-1)).tolist()
    return lead


def check_logits(logits: Tensor) -> Check:
    """Whether there are numbers, and not the same one for every token."""
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        return Check(
            "logits", passed=False, detail=f"{bad} of {logits.numel()} are NaN or infinite"
        )
    if not bool((logits.std(dim=-1) > 0).all()):
        return Check("logits", passed=False, detail="all the same: every token is as likely")
    return Check("logits", passed=True, detail=f"all {logits.numel()} finite")


def check_repetition(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    found: GreedyContinuation,
    reference_weight: ReferenceWeight,
) -> Check:
    """Whether the model says one token again and again though its weights do not mean that.

    Some do mean it: a random model, or one that the prompt is strange to. So one that repeats
    itself is run again with the checkpoint's own weights in every layer, which takes long but is
    seldom needed; it fails where those would have said something else.
    """
    if len(set(found.token_ids)) > 1:
        return Check("repetition", passed=True, detail="the answer is not one token repeated")
    with using_reference(model, reference_weight):
        logits = _judge(model, [*prompt_ids, *found.token_ids])
    repeated = found.token_ids[0]
    behind = (logits.max(dim=-1).values - logits[:, repeated]) / logits.std(dim=-1)
    if bool((behind <= TIE).all()):
        detail = f"token {repeated} repeated; the checkpoint's own weights say the same"
        return Check("repetition", passed=True, detail=detail)
    return Check(
        "repetition",
        passed=False,
        detail=f"token {repeated} repeated; the checkpoint's own weights say otherwise",
    )


@torch.inference_mode()
def _judge(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Return the logits by which each token of the answer would be picked, float32."""
    run: Any = model
    ids = torch.tensor([list(token_ids)], device=model.device)
    output = run(input_ids=ids, use_cache=False, logits_to_keep=NUM_TOKENS + 1)
    logits: Tensor = output.logits[0, :-1].float().cpu()
    return logits


@contextmanager
def using_reference(model: PreTrainedModel, reference_weight: ReferenceWeight) -> Iterator[None]:
    """Have every packed layer multiply by the checkpoint's own weight, read at each call."""
    replaced: list[tuple[PackedLinear, Any]] = []
    try:
        for name, layer in model.named_modules():
            if isinstance(layer, PackedLinear):
                replaced.append((layer, layer.kernel))
                layer.kernel = _ReadingKernel(name, layer, reference_weight)  # type: ignore[assignment]
        yield
    finally:
        for layer, kernel in replaced:
            layer.kernel = kernel


class _ReadingKernel:
    """Multiplies by a weight that is read for the purpose; by the kernel where there is none."""

    input_permutation: Tensor | None = None

    def __init__(self, name: str, layer: PackedLinear, reference_weight: ReferenceWeight) -> None:
        self._name, self._reference_weight = name, reference_weight
        self._kernel: Any = layer.kernel
        self._bias = layer.bias if layer.is_bias_in_kernel else None

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._reference_weight(self._name)
        if weight is not None:
            return torch.nn.functional.linear(x.float(), weight.to(x.device), self._bias).to(
                x.dtype
            )
        order = self._kernel.input_permutation
        product: Tensor = self._kernel(x if order is None else x.index_select(1, order))
        return product


def tokens_key(prompt_ids: Sequence[int], backend: str, dtype: str, device: torch.device) -> str:
    """Name the record of an answer: everything it may depend on but the commit."""
    prompt = hashlib.sha256(repr(list(prompt_ids)).encode()).hexdigest()[:8]
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = "+".join(f"{name}-{version(name)}" for name in ("tetrad", "torch", "transformers"))
    return f"first_tokens:{backend}:{dtype}:{kind}:{versions}:{prompt}"


def check_known_tokens(
    found: GreedyContinuation, records: Records, commit: str | None, key: str
) -> Check:
    """Whether the answer is the one that was recorded; record it where there is none.

    Where they part at a near tie nothing can be said, and nothing is.
    """
    name = "first tokens"
    if commit is None:
        return Check(name, None, "not kept for a plain folder: it has no commit")
    recorded = _read_answer(records.read(commit, key))
    if recorded is None:
        records.write(commit, key, {"token_ids": list(found.token_ids), "gaps": list(found.gaps)})
        return Check(name, passed=True, detail="kept for the next time")
    for old, new, old_gap, gap in zip(
        recorded.token_ids, found.token_ids, recorded.gaps, found.gaps, strict=True
    ):
        if old != new and min(old_gap, gap) < TIE:
            return Check(name, passed=True, detail="as before, up to a near tie")
        if old != new:
            detail = (
                f"{list(found.token_ids)}, but {list(recorded.token_ids)} the last time; if that"
                f" was wrong, delete records/{commit}.json in the cache folder"
            )
            return Check(name, passed=False, detail=detail)
    return Check(name, passed=True, detail="the same as the last time")


def _read_answer(record: Any) -> GreedyContinuation | None:
    """Read a record; one that makes no sense counts as absent."""
    try:
        token_ids = tuple(int(token_id) for token_id in record["token_ids"])
        gaps = tuple(float(gap) for gap in record["gaps"])
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None
    return (
        GreedyContinuation(token_ids, gaps) if len(token_ids) == len(gaps) == NUM_TOKENS else None
    )
