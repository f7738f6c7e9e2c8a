"""Which variant an engine loads: the one that is named, else the one that a plan picks for here.

A name that leaves the branch or file open is planned for what is free on the device that will be
used, so two machines may choose differently; the choice is told with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from loaders.accelerators import Devices, find_card
from loaders.errors import NotEnoughMemoryError
from loaders.load import resolve_device_map
from loaders.memory import free_bytes
from loaders.named_variants import find_variants
from loaders.plan import choose, plan_variants
from loaders.records import Records
from service.attempt import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.plan import Choice
    from loaders.spec import VariantSpec
    from loaders.variants import Variant
    from service.attempt import Attempt
    from service.settings import WorkerSettings

_MAX_LOSERS = 8  # that an error message explains


def choose_variant(
    spec: VariantSpec,
    settings: WorkerSettings,
    attempt: Attempt,
    *,
    cache_dir: Path | None,
    local_files_only: bool,
    device: str,
) -> Trial:
    """Say what to load for a name.

    device: the one that it will run on. Raises LoadError; NotEnoughMemoryError, with the arithmetic
    of each variant, where nothing fits.
    """
    if spec.revision is not None or spec.file is not None:
        return Trial(variant=str(spec))
    token = settings.hub_token
    variants = find_variants(
        spec,
        cache_dir=cache_dir,
        token=None if token is None else token.get_secret_value(),
        local_files_only=local_files_only,
    )
    if len(variants) < 2:
        return Trial(variant=str(spec))  # whatever is wrong with it, loading says better
    left = [one for one in variants if name_of(spec, one) not in attempt.excluded_variants]
    choice = plan_here(left, settings, device)
    if choice.plan is None:
        raise NotEnoughMemoryError(f"{spec}: {choice.reason}; {_explain(choice)}")
    return Trial(variant=name_of(spec, choice.plan.variant), reason=choice.reason)


def name_of(spec: VariantSpec, variant: Variant) -> str:
    """Name one of a repository's variants as `tetrad serve` takes it, local ones by their path."""
    return str(replace(spec, revision=variant.revision, file=variant.file))


def plan_here(variants: Sequence[Variant], settings: WorkerSettings, device: str) -> Choice:
    """Plan variants for a device of this machine, and choose one."""
    devices, share = devices_of(device, settings.gpu_memory_utilization)
    planned = plan_variants(
        variants,
        devices,
        context=None if settings.max_model_len == "auto" else settings.max_model_len,
        users=settings.users,
        records=Records(settings.cache_dir),
        gpu_share=share,
    )
    return choose(planned, settings.prefer)


def _explain(choice: Choice) -> str:
    lost = [f"{one.variant.file or one.variant.revision}: {one.reason}" for one in choice.losers]
    return "; ".join(lost[:_MAX_LOSERS]) or "it holds no variants"


def devices_of(device: str, gpu_memory_utilization: float) -> tuple[Devices, float]:
    """Describe where an engine will run, and which share of it may be taken for good.

    Counts what is free now, as others may use the device, too. Raises BackendError.
    """
    place = one_device(device)
    free = free_bytes(place)
    if place.type == "cpu":
        return Devices("cpu", "cpu", 1, free), 1.0
    properties = torch.cuda.get_device_properties(place)
    card = find_card(properties.name, properties.total_memory)
    lasting = free - (1 - gpu_memory_utilization) * properties.total_memory
    devices = Devices(
        "cuda",
        properties.name,
        1,
        free,
        card.bandwidth if card else None,
        (properties.major, properties.minor),
    )
    return devices, max(0.0, lasting / free)


def one_device(asked: str) -> torch.device:
    """Where an engine runs; of several GPUs, "auto" is the one with the most memory free.

    Raises BackendError.
    """
    places = resolve_device_map(asked)
    if not isinstance(places, str):
        return places[""]
    every = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return max(every, key=free_bytes)
