"""Answers "which branch do I take for my GPU?": what each variant needs, and which to choose.

A plan is arithmetic over tensor headers and settings, so it works without a GPU, without weights
and without PyTorch. It never says more than it knows: a number that no device has confirmed is
marked so. Formulas, constants and worked examples: docs/planning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from loaders.checkpoint.shape import read_shape
from loaders.checkpoint.unused_layers import find_unused_layers
from loaders.demo.figures import recorded_commit_perplexity
from loaders.errors import LoadError
from loaders.memory.device import Demand, PreparedWeights, prepare
from loaders.memory.engine_defaults import (
    BLOCK_SIZE,
    CPU_KV_BYTES,
    GPU_SHARE,
    KV_DTYPE,
    MAX_NUM_SEQS,
)
from loaders.memory.layers import kernel_reason, kernels_used
from loaders.planning.other_engines import Verdict, verdicts
from loaders.planning.quality import Quality, expected_quality
from loaders.quantization.kernel_rules import triton_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loaders.catalogue.variants import Variant
    from loaders.memory.device import DeviceShare, MemoryBreakdown
    from loaders.memory.layers import KernelUse
    from loaders.planning.accelerators import Devices
    from loaders.records import Records

Prefer = Literal["quality", "speed", "memory"]
PREFERENCES: tuple[Prefer, ...] = ("quality", "speed", "memory")
# Long enough for a file and its edit, short enough that a 7B model of full heads fits 8 GB; a model
# made for less gets what it was made for.
DEFAULT_CONTEXT = 4096
DEFAULT_USERS = 1
# Where nothing fits as asked, a variant that reaches nearly the longest context may still be the
# better one: a 13B model's Q2_K reaches 2 704 tokens where its Q3_K_S reaches 2 640.
_NEAR_LONGEST = 0.9
SHOWN_USERS = (1, 4, 16)
# A perplexity up to this times the best counts as the same: the text that they were measured on is
# short, and another one would order them otherwise.
_EQUAL_QUALITY = 1.005
SEVERAL_GPUS = (
    "layers are spread over the GPUs one after another (pipeline over layers, no tensor"
    " parallelism); the loader does this with device `auto`, the engine runs on one GPU today:"
    " this plan is for when it does not"
)


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a variant really took when it ran on such a device before."""

    predicted: int
    measured: int
    date: str

    @property
    def factor(self) -> float:
        """Measured by predicted, within reason: a record may be of a stranger setting."""
        return min(2.0, max(0.5, self.measured / self.predicted))


@dataclass(frozen=True, slots=True)
class Plan:
    """What one variant needs on the devices, and what it gives there."""

    variant: Variant
    devices: Devices
    demand: Demand
    memory: tuple[MemoryBreakdown, ...]  # of each device
    shortfall: int  # bytes that the fullest device lacks; 0 where it fits
    shortfall_fp8: int  # the same with an fp8 KV cache
    kv_cache_fp8: int  # bytes of an fp8 KV cache, all devices together
    max_context: dict[int, int]  # users → longest context that fits; 0 where none does
    model_max_context: int  # what the model was made for
    backend: str
    backend_reason: str
    kernels: tuple[KernelUse, ...]  # of packed layers, that with most layers first
    quality: Quality
    bytes_per_token: int  # read for one user's token at the end of its context
    engines: tuple[Verdict, ...]
    measured: MeasuredMemory | None  # None: no device has confirmed the numbers

    @property
    def fits(self) -> bool:
        """Whether it runs as asked."""
        return self.shortfall == 0 and self.demand.context <= self.model_max_context

    @property
    def fullest(self) -> MemoryBreakdown:
        """The device that holds most."""
        return max(self.memory, key=lambda share: share.total)

    @property
    def reachable_context(self) -> int:
        """The longest context for the users asked, never longer than asked."""
        return min(self.max_context[self.demand.users], self.demand.context)

    @property
    def max_tokens_per_s(self) -> float | None:
        """Memory bandwidth's bound for one user; None where it is unknown. Real speed is lower."""
        if self.devices.bandwidth is None:
            return None
        return self.devices.bandwidth * 1e9 / self.bytes_per_token

    @property
    def remarks(self) -> tuple[str, ...]:
        """What must be known beside the numbers."""
        remarks = [self._confirmation()]
        if self.shortfall and not self.shortfall_fp8:
            remarks.append("fits with --kv-cache-dtype fp8, which costs some precision")
        if self.devices.count > 1:
            remarks.append(SEVERAL_GPUS)
        if self.devices.kind == "cpu" and self._exceeds_own_cache:
            remarks.append(
                "more KV cache than the engine makes of itself on a CPU; serve it with"
                f" --kv-cache-size {self.fullest.kv_cache}"
            )
        return tuple(remarks)

    @property
    def _exceeds_own_cache(self) -> bool:
        one_user = self.fullest.kv_cache // self.demand.users
        return self.fullest.kv_cache > max(CPU_KV_BYTES, one_user)

    def _confirmation(self) -> str:
        if self.measured is None:
            return "unverified: predicted, not measured on such a device"
        return (
            f"corrected by what was measured on {self.measured.date}:"
            f" {self.measured.measured / 1e9:.2f} GB, predicted {self.measured.predicted / 1e9:.2f}"
        )


@dataclass(frozen=True, slots=True)
class RejectedVariant:
    """A variant that was not planned for or not chosen, and why."""

    variant: Variant
    reason: str
    names_quality: bool = False  # whether the reason says how good it is


@dataclass(frozen=True, slots=True)
class PlannedVariants:
    """Every variant of a repository: what it needs, or why it cannot be loaded."""

    plans: tuple[Plan, ...]
    refused: tuple[RejectedVariant, ...]


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The variant to take, in one line, and why each other one lost."""

    plan: Plan | None  # None where nothing fits at any context
    context: int  # the context it gets; shorter than asked where nothing fits as asked
    reason: str
    losers: tuple[RejectedVariant, ...]

    @property
    def is_shortened(self) -> bool:
        """Whether it gets less context than asked for."""
        return self.plan is not None and self.context < self.plan.demand.context


def plan_variants(
    variants: Iterable[Variant],
    devices: Devices,
    *,
    context: int | None = None,
    users: int = DEFAULT_USERS,
    kv_dtype: str | None = None,
    records: Records | None = None,
    gpu_share: float = GPU_SHARE,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> PlannedVariants:
    """Plan every variant for the devices.

    context: tokens a sequence; None is what the model was made for, `DEFAULT_CONTEXT` at most.
    kv_dtype: of keys and values; None is the engine's `auto`. records: what this machine has
    learnt; gpu_share: `gpu_memory_utilization`; max_num_seqs: what the engine makes room for.
    """
    plans, refused = [], []
    for variant in variants:
        try:
            plans.append(
                plan_variant(
                    variant,
                    devices,
                    context=context,
                    users=users,
                    kv_dtype=kv_dtype,
                    records=records,
                    gpu_share=gpu_share,
                    max_num_seqs=max_num_seqs,
                )
            )
        except LoadError as error:
            refused.append(RejectedVariant(variant, str(error)))
    return PlannedVariants(tuple(plans), tuple(refused))


def plan_variant(
    variant: Variant,
    devices: Devices,
    *,
    context: int | None = None,
    users: int = DEFAULT_USERS,
    kv_dtype: str | None = None,
    records: Records | None = None,
    gpu_share: float = GPU_SHARE,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> Plan:
    """Plan one variant; raises LoadError where it cannot be loaded, whatever the device."""
    if variant.refusal is not None or variant.kind == "other":
        raise LoadError(variant.refusal or "quantised in a way that is not read here")
    shape = read_shape(variant.config)
    made_for = shape.max_context
    demand = Demand(
        context or min(made_for, DEFAULT_CONTEXT),
        users,
        kv_dtype,
        max(max_num_seqs, users),
        # Without Triton steps run as they come (docs/performance.md).
        has_graphs=triton_refusal(devices.facts) is None,
    )
    unused = find_unused_layers(variant.tensors, variant.config, shape.num_layers).names
    used = {name: tensor for name, tensor in variant.tensors.items() if name not in unused}
    weights = prepare(used, variant.config, variant.quantization, devices.facts)
    measured = _recorded(records, variant, devices.kind, weights.backend)
    factor = measured.factor if measured else 1.0
    fit = _Fit(weights, weights.shares(devices.count), devices, factor, gpu_share, demand)
    fp8 = replace(demand, kv_dtype="fp8")
    kv_per_token = weights.shape.kv_bytes_per_token(kv_dtype or KV_DTYPE[devices.kind])
    return Plan(
        variant=variant,
        devices=devices,
        demand=demand,
        memory=fit.memory(demand),
        shortfall=fit.shortfall(demand),
        shortfall_fp8=fit.shortfall(fp8),
        kv_cache_fp8=sum(share.kv_cache for share in fit.memory(fp8)),
        max_context={count: fit.max_context(count) for count in {*SHOWN_USERS, users}},
        model_max_context=made_for,
        backend=weights.backend,
        backend_reason=kernel_reason(weights.parts),
        kernels=kernels_used(weights.parts),
        quality=expected_quality(variant, _perplexity(variant, records)),
        bytes_per_token=weights.read_per_token + demand.context * kv_per_token,
        engines=verdicts(variant),
        measured=measured,
    )


def _perplexity(variant: Variant, records: Records | None) -> object:
    """What was measured here, or with the package for the demo's branches, built or not."""
    here = records and records.of(variant.file).read(variant.commit, "perplexity")
    return here or recorded_commit_perplexity(variant.commit)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Weights on devices: how much is missing for a demand."""

    weights: PreparedWeights
    shares: tuple[DeviceShare, ...]
    devices: Devices
    factor: float  # what measuring has taught
    gpu_share: float
    asked: Demand

    def memory(self, demand: Demand) -> tuple[MemoryBreakdown, ...]:
        predicted = self.weights.memory(self.shares, demand)
        return tuple(share.scaled(self.factor) for share in predicted)

    def shortfall(self, demand: Demand) -> int:
        """How many bytes the worst device lacks; 0 where all have enough."""
        return max(self._missing(share) for share in self.memory(demand))

    def _missing(self, share: MemoryBreakdown) -> int:
        missing = share.total - self.devices.memory_bytes
        if self.devices.kind == "cuda":
            # The engine sizes its cache so; what the share leaves is for activations.
            missing = max(missing, share.lasting - int(self.devices.memory_bytes * self.gpu_share))
        return max(0, missing)

    def max_context(self, users: int) -> int:
        """The longest context that fits, in whole blocks; what the model was made for at most."""
        low, high = 0, -(-self.weights.shape.max_context // BLOCK_SIZE)
        while low < high:
            middle = (low + high + 1) // 2
            if self.shortfall(replace(self.asked, context=middle * BLOCK_SIZE, users=users)):
                high = middle - 1
            else:
                low = middle
        return min(low * BLOCK_SIZE, self.weights.shape.max_context)


def _recorded(
    records: Records | None, variant: Variant, device: str, backend: str
) -> MeasuredMemory | None:
    """Read what was measured of this commit; a record that makes no sense counts as none."""
    found: Any = records and records.of(variant.file).read(
        variant.commit, f"memory:{device}:{backend}"
    )
    if not isinstance(found, dict):
        return None
    predicted, measured, date = found.get("predicted"), found.get("measured"), found.get("date")
    if not _is_size(predicted) or not _is_size(measured):
        return None
    return MeasuredMemory(predicted, measured, str(date)[:10])


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def choose(planned: PlannedVariants, prefer: Prefer = "quality") -> VariantChoice:
    """Choose by preference among what fits; else among what reaches the longest context."""
    fitting = [plan for plan in planned.plans if plan.fits]
    if fitting:
        best = min(fitting, key=_order(fitting, prefer))
        losers = tuple(_rejected(plan, best, prefer) for plan in planned.plans if plan is not best)
        reason = f"{_merit(best, prefer)} of the {len(fitting)} that fit {_asked(best)}"
        if len(fitting) == 1:
            reason = f"the only one that fits {_asked(best)}"
        return VariantChoice(best, best.demand.context, reason, losers + planned.refused)
    return _choose_shortened(planned, prefer)


def _choose_shortened(planned: PlannedVariants, prefer: Prefer) -> VariantChoice:
    plans = planned.plans
    reaching = [plan for plan in plans if plan.reachable_context]
    if not reaching:
        losers = tuple(RejectedVariant(plan.variant, _lacks(plan)) for plan in plans)
        reason = "nothing fits, at any context" if plans else "there is nothing that can be loaded"
        return VariantChoice(None, 0, reason, losers + planned.refused)
    longest = max(plan.reachable_context for plan in reaching)
    near = [plan for plan in reaching if plan.reachable_context >= _NEAR_LONGEST * longest]
    best = min(near, key=_order(near, prefer))
    losers = tuple(
        RejectedVariant(p.variant, f"{_lacks(p)}; {_reached(p)}") for p in plans if p is not best
    )
    reason = (
        f"nothing fits {_asked(best)}; this one reaches {best.reachable_context} tokens, and the"
        f" longest is {longest}"
    )
    return VariantChoice(best, best.reachable_context, reason, losers + planned.refused)


def _order(plans: Sequence[Plan], prefer: Prefer) -> Callable[[Plan], tuple[float, ...]]:
    """Return the key by which the best plan comes first."""
    # Comparing a measured one with one that is only expected could go round in a circle.
    measured = [p.quality.perplexity for p in plans if p.quality.perplexity is not None]
    is_measured = bool(plans) and len(measured) == len(plans)
    as_good = min(measured, default=0.0) * _EQUAL_QUALITY

    def quality(plan: Plan) -> float:
        perplexity = plan.quality.perplexity
        if not is_measured or perplexity is None:
            return -plan.quality.rank
        return 0.0 if perplexity <= as_good else perplexity

    def key(plan: Plan) -> tuple[float, ...]:
        total = sum(share.total for share in plan.memory)
        if prefer == "quality":
            return quality(plan), plan.bytes_per_token
        if prefer == "speed":
            return plan.bytes_per_token, quality(plan)
        return total, quality(plan)

    return key


def _merit(plan: Plan, prefer: Prefer) -> str:
    if prefer == "quality":
        if plan.quality.perplexity is not None:
            return f"best quality ({plan.quality.words}, perplexity {plan.quality.perplexity:.2f})"
        return f"best expected quality ({plan.quality.words})"
    if prefer == "speed":
        return f"fewest bytes read a token ({plan.bytes_per_token / 1e9:.2f} GB)"
    return f"least memory ({plan.fullest.total / 1e9:.2f} GB)"


def _rejected(plan: Plan, best: Plan, prefer: Prefer) -> RejectedVariant:
    """Say why a plan lost to the best one, which fits."""
    if not plan.fits:
        return RejectedVariant(plan.variant, _lacks(plan))
    if prefer == "quality":
        return _rejected_by_quality(plan, best)
    if prefer == "speed":
        return RejectedVariant(plan.variant, f"fits; reads {_more(plan, best)} a token")
    more = sum(s.total for s in plan.memory) - sum(s.total for s in best.memory)
    return RejectedVariant(plan.variant, f"fits; takes {more / 1e9:.2f} GB more memory")


def _rejected_by_quality(plan: Plan, best: Plan) -> RejectedVariant:
    own, other = plan.quality.perplexity, best.quality.perplexity
    if own is not None and other is not None:
        reason = f"fits; {plan.quality.words}, perplexity {own:.2f}"
        if own <= other * _EQUAL_QUALITY:
            reason += f": as good, reads {_more(plan, best)} a token"
        return RejectedVariant(plan.variant, reason, names_quality=True)
    if plan.quality.rank == best.quality.rank:
        reason = f"fits; equal expected quality, reads {_more(plan, best)} a token"
        return RejectedVariant(plan.variant, reason)
    reason = f"fits; lower expected quality ({plan.quality.words})"
    return RejectedVariant(plan.variant, reason, names_quality=True)


def _more(plan: Plan, best: Plan) -> str:
    return f"{(plan.bytes_per_token - best.bytes_per_token) / 1e9:.2f} GB more"


def _lacks(plan: Plan) -> str:
    if plan.demand.context > plan.model_max_context:
        return f"was made for {plan.model_max_context} tokens, {plan.demand.context} are asked for"
    return f"lacks {plan.shortfall / 1e9:.2f} GB for {_demand(plan)}"


def _reached(plan: Plan) -> str:
    tokens = plan.reachable_context
    return f"reaches {tokens} tokens" if tokens else "nor for a single block"


def _asked(plan: Plan) -> str:
    return f"{plan.devices} at {_demand(plan)}"


def _demand(plan: Plan) -> str:
    users = "1 user" if plan.demand.users == 1 else f"{plan.demand.users} users"
    return f"{plan.demand.context} tokens x {users}"
