"""Which variant an engine loads: the one that is named, else the one that a plan picks for here.

A name that leaves the branch or file open is planned for what is free on the device that will be
used, so two machines may choose differently; the choice is told with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from loaders.catalogue.find import find_variants
from loaders.errors import NotEnoughMemoryError
from loaders.memory.free import free_device_bytes
from loaders.model.placement import resolve_device_map
from loaders.planning.accelerators import Devices, find_gpu_model
from loaders.planning.plan import choose, plan_variants
from loaders.quantization.kernel_rules import has_triton
from loaders.records import Records
from service.settings import unless_auto
from service.worker_protocol.load_attempt import LoadAttempt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.catalogue.variants import Variant
    from loaders.planning.plan import PlannedVariants, VariantChoice
    from loaders.repository.spec import VariantSpec
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

_MAX_LOSERS = 8  # that an error message explains


def choose_variant(
    spec: VariantSpec,
    settings: WorkerSettings,
    load_request: LoadRequest,
    *,
    cache_dir: Path | None,
    local_files_only: bool,
    device: str,
) -> LoadAttempt:
    """Say what to load for a name.

    device: the one that it will run on. Raises LoadError; NotEnoughMemoryError, with the arithmetic
    of each variant, where nothing fits.
    """
    if spec.revision is not None or spec.file is not None:
        return LoadAttempt(variant=str(spec))
    variants = find_variants(
        spec,
        cache_dir=cache_dir,
        token=settings.hub_token_value,
        local_files_only=local_files_only,
    )
    if not variants:
        return LoadAttempt(variant=str(spec))  # loading says best what is wrong with it
    if len(variants) == 1:
        return LoadAttempt(variant=name_of(spec, variants[0]))
    left = _untried(spec, variants, load_request.excluded_variants)
    choice = plan_here(left, settings, device)
    if choice.plan is not None and not (choice.is_shortened and settings.strict):
        return LoadAttempt(variant=name_of(spec, choice.plan.variant), reason=choice.reason)
    smallest = _smallest(left, settings, device) if settings.cpu_offload else None
    if smallest is not None:
        reason = "nothing fits whole; of the smallest one a part stays on the CPU"
        return LoadAttempt(variant=name_of(spec, smallest), reason=reason)
    raise NotEnoughMemoryError(f"{spec}: {choice.reason}; {_explain(choice)}")


def _untried(
    spec: VariantSpec, variants: Sequence[Variant], excluded: Sequence[str]
) -> Sequence[Variant]:
    """Leave out what failed, under any of its names; a branch and a tag may be one commit."""
    failed = {_content(one) for one in variants if name_of(spec, one) in excluded}
    firsts = {_content(one): one for one in reversed(variants)}
    return [one for one in variants if firsts[_content(one)] is one and _content(one) not in failed]


def _content(variant: Variant) -> tuple[str | None, str | None]:
    """What two names of one variant have in common."""
    return variant.commit or variant.revision, variant.file


def _smallest(variants: Sequence[Variant], settings: WorkerSettings, device: str) -> Variant | None:
    plans = _plans(variants, settings, device).plans
    if not plans:
        return None
    return min(plans, key=lambda plan: sum(share.total for share in plan.memory)).variant


def name_of(spec: VariantSpec, variant: Variant) -> str:
    """Name one of a repository's variants as `tetrad serve` takes it, local ones by their path."""
    return str(replace(spec, revision=variant.revision, file=variant.file))


def plan_here(variants: Sequence[Variant], settings: WorkerSettings, device: str) -> VariantChoice:
    """Plan variants for a device of this machine, and choose one."""
    return choose(_plans(variants, settings, device), settings.prefer)


def _plans(variants: Sequence[Variant], settings: WorkerSettings, device: str) -> PlannedVariants:
    devices = devices_of(device)
    return plan_variants(
        variants,
        devices,
        context=unless_auto(settings.max_model_len),
        users=settings.users,
        max_num_seqs=settings.max_num_seqs,
        kv_dtype=unless_auto(settings.kv_cache_dtype),
        records=Records(settings.cache_dir),
        gpu_share=devices.lasting_share(settings.gpu_memory_utilization),
    )


def _explain(choice: VariantChoice) -> str:
    lost = [f"{one.variant.file or one.variant.revision}: {one.reason}" for one in choice.losers]
    return "; ".join(lost[:_MAX_LOSERS]) or "it holds no variants"


def devices_of(device: str) -> Devices:
    """Describe where an engine will run, with what is free there now. Raises BackendError."""
    place = one_device(device)
    free = free_device_bytes(place)
    if place.type == "cpu":
        return Devices("cpu", "cpu", 1, free)
    properties = torch.cuda.get_device_properties(place)
    gpu = find_gpu_model(properties.name, properties.total_memory)
    return Devices(
        "cuda",
        properties.name,
        1,
        free,
        gpu.bandwidth if gpu else None,
        (properties.major, properties.minor),
        total_bytes=properties.total_memory,
        has_triton=has_triton(),
    )


def one_device(asked: str) -> torch.device:
    """Where an engine runs; of several GPUs, "auto" is the one with the most memory free.

    Raises BackendError.
    """
    places = resolve_device_map(asked)
    if not isinstance(places, str):
        return places[""]
    every = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return max(every, key=free_device_bytes)
