"""Rows to sample, and the plain way to sample one: slow, in float64, one token at a time."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from numpy import float32

from engine.sampling.row_plan import make_plan
from engine.sampling.sampler import sample, uniform
from engine.sampling.state import SamplingState
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import RowExtras, SlotStart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.sampling.sampler import SampledRows

CPU = torch.device("cpu")


def params(**settings: Any) -> SamplingParams:
    """Settings that change nothing, apart from those given."""
    return SamplingParams(max_tokens=100, **settings)


@dataclass
class Row:
    """One sequence that samples one token."""

    logits: torch.Tensor  # [vocab]
    params: SamplingParams
    seed: int = 0
    prompt: tuple[int, ...] = (0, 0, 0)
    output: tuple[int, ...] = ()
    extras: RowExtras | None = None

    @property
    def position(self) -> int:
        drafts = self.extras.draft_token_ids if self.extras else ()
        return len(self.prompt) + len(self.output) + len(drafts)


def mask_of(allowed: Sequence[int], vocab_size: int) -> bytes:
    """Write a constraint's mask bit by bit."""
    mask = bytearray(4 * math.ceil(vocab_size / 32))
    for token in allowed:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def run(
    rows: Sequence[Row], *, is_graph_safe: bool = False, device: torch.device = CPU
) -> SampledRows:
    """Sample the rows together, each in a slot of its own."""
    state = SamplingState(
        max_num_seqs=len(rows),
        vocab_size=len(rows[0].logits),
        device=device,
        is_graph_safe=is_graph_safe,
    )
    for slot, row in enumerate(rows):
        state.start(SlotStart(slot, slot, row.params, row.seed, row.prompt, row.output, ()))
    extras = {i: row.extras for i, row in enumerate(rows) if row.extras is not None}
    plan = make_plan(state, range(len(rows)), [row.position for row in rows], extras)
    return sample(torch.stack([row.logits for row in rows]).to(device), plan, state)


def pick(rows: Sequence[Row], *, is_graph_safe: bool = False) -> list[int]:
    """Sample the rows together and read their tokens."""
    tokens: list[int] = run(rows, is_graph_safe=is_graph_safe).tokens.tolist()
    return tokens


def changed_by_reference(row: Row) -> list[float]:
    """A row's logits after bias, bans and penalties; in float32, which decides what is equal."""
    p, extras = row.params, row.extras or RowExtras()
    generated = [*row.output, *extras.draft_token_ids]
    changed = []
    bias = {token: float32(value) for token, value in p.logit_bias.items()}
    repetition, frequency = float32(p.repetition_penalty), float32(p.frequency_penalty)
    presence = float32(p.presence_penalty)
    for token, logit in enumerate(row.logits.numpy()):
        logit = logit + bias.get(token, float32(0))
        if is_banned(token, p, extras, len(generated)):
            logit = float32(-math.inf)
        if token in generated or token in row.prompt:
            logit = logit / repetition if logit > 0 else logit * repetition
        logit = logit - frequency * float32(generated.count(token))
        logit = logit - presence * float32(token in generated)
        changed.append(float(logit))
    return changed


def is_banned(token: int, p: SamplingParams, extras: RowExtras, num_generated: int) -> bool:
    return (
        token in p.banned_token_ids
        or token in extras.banned_token_ids
        or (p.allowed_token_ids is not None and token not in p.allowed_token_ids)
        or (extras.mask is not None and not extras.mask[token // 8] >> token % 8 & 1)
        or (num_generated < p.min_tokens and token in p.end_token_ids)
    )


def kept_by_reference(logits: Sequence[float], p: SamplingParams) -> dict[int, float]:
    """The probabilities that may be drawn, by token; equal ones stand or fall together."""
    most = max(logits)
    kept = {i: math.exp((x - most) / p.temperature) for i, x in enumerate(logits)}
    kept = {i: x for i, x in kept.items() if x > 0}
    if p.top_k is not None and p.top_k < len(kept):
        least = sorted(kept.values(), reverse=True)[p.top_k - 1]
        kept = {i: x for i, x in kept.items() if x >= least}
    kept = nearest_to_zero({i: -x for i, x in kept.items()}, kept, p.top_p)
    kept = {i: x for i, x in kept.items() if x >= p.min_p * max(kept.values())}
    probs = normalised(kept)
    entropy = -sum(x * math.log(x) for x in probs.values())
    surprise = {i: abs(-math.log(x) - entropy) for i, x in probs.items()}
    return normalised(nearest_to_zero(surprise, kept, p.typical_p))


def nearest_to_zero(
    order: dict[int, float], mass: dict[int, float], portion: float
) -> dict[int, float]:
    """Keep tokens from the least of `order` on until they have their portion of the mass."""
    if portion >= 1:
        return mass
    limit = portion * sum(mass.values())
    kept: dict[int, float] = {}
    for value in sorted(set(order.values())):
        if sum(kept.values()) >= limit:
            break
        kept |= {i: mass[i] for i in mass if order[i] == value}
    return kept


def normalised(mass: dict[int, float]) -> dict[int, float]:
    total = sum(mass.values())
    return {i: x / total for i, x in mass.items()}


def token_by_reference(row: Row) -> int:
    """The token that the row must come to."""
    logits = changed_by_reference(row)
    if row.params.is_greedy:
        return logits.index(max(logits))
    number = uniform(torch.tensor([row.seed]), torch.tensor([row.position])).item()
    passed = 0.0
    probs = kept_by_reference(logits, row.params)
    for token in sorted(probs):
        passed += probs[token]
        if passed > number:
            return token
    return max(probs)


@dataclass
class RowMaker:
    """Makes rows of mixed settings, the same for the same seed."""

    seed: int
    vocab_size: int = 203  # no multiple of anything that a kernel works in
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def row(self) -> Row:
        choose = self.random.choice
        logits = torch.randn(
            self.vocab_size, generator=torch.Generator().manual_seed(self.random.getrandbits(40))
        )
        logits = logits * choose((0.05, 1.0, 3.0, 8.0))
        if choose((True, False)):
            logits = logits.round(decimals=1)  # with many that are equal
        return Row(
            logits,
            self.settings(),
            seed=self.random.getrandbits(63),
            prompt=self.some_ids(1, 9),
            output=choose(((), self.some_ids(1, 9))),
            extras=self.extras(),
        )

    def settings(self) -> SamplingParams:
        choose, often = self.random.choice, self.random.random
        return params(
            temperature=choose((0.0, 0.3, 1.0, 1.0, 2.5)),
            top_k=choose((None, None, 1, 3, 40, 500)),
            top_p=choose((1.0, 1.0, 0.05, 0.6, 0.95)),
            min_p=choose((0.0, 0.0, 0.02, 0.3)),
            typical_p=choose((1.0, 1.0, 0.2, 0.9)),
            presence_penalty=choose((0.0, 0.0, 1.5, -1.0)),
            frequency_penalty=choose((0.0, 0.0, 0.7, -2.0)),
            repetition_penalty=choose((1.0, 1.0, 1.3, 0.8)),
            logit_bias=choose(({}, dict.fromkeys(self.some_ids(1, 5), 3.5))),
            allowed_token_ids=frozenset(self.some_ids(30, 60)) if often() < 0.2 else None,
            banned_token_ids=frozenset(self.some_ids(0, 3)) if often() < 0.3 else frozenset(),
            min_tokens=choose((0, 0, 5)),
            eos_token_ids=frozenset(self.some_ids(0, 40)),
            logprobs=choose((None, None, 0, 4)),
        )

    def extras(self) -> RowExtras | None:
        often = self.random.random
        if often() < 0.5:
            return None
        allowed = random.Random(self.seed).sample(range(self.vocab_size), self.vocab_size * 3 // 4)
        return RowExtras(
            draft_token_ids=self.some_ids(0, 4) if often() < 0.5 else (),
            banned_token_ids=self.some_ids(0, 3),
            mask=mask_of(allowed, self.vocab_size) if often() < 0.4 else None,
        )

    def some_ids(self, least: int, most: int) -> tuple[int, ...]:
        return tuple(
            self.random.choices(range(self.vocab_size), k=self.random.randint(least, most))
        )
