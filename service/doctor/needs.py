"""What the variants that shall be served take of this machine: of its disk and of its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.catalogue.find import find_variants
from loaders.demo.listing import built_cache, is_demo
from loaders.errors import LoadError
from loaders.memory.free import free_device_bytes
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from service.doctor import machine
from service.doctor.finding import Finding, fix, ok, warning
from service.worker.branch_choice import name_of, one_device, plan_here

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.repository.spec import VariantSpec
    from service.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Needs:
    """What a variant takes."""

    download_bytes: int  # 0 where its files are here
    memory_bytes: int  # weights, KV cache, activations and process
    spec: VariantSpec | None = None  # of what would be loaded


@dataclass(frozen=True, slots=True)
class NamedVariant:
    """A variant that shall be served, and what it takes, or why that is not known."""

    name: str
    device: str  # as the settings name it
    needs: Needs | LoadError


def read_needs(variants: Sequence[WorkerSettings]) -> list[NamedVariant]:
    """Find what each named variant takes; those that name none are left out."""
    found = []
    for settings in variants:
        if settings.variant is None:
            continue
        try:
            needs: Needs | LoadError = find_needs(settings)
        except LoadError as error:
            needs = error
        found.append(NamedVariant(settings.variant, settings.device, needs))
    return found


def find_needs(settings: WorkerSettings) -> Needs:
    """Plan a variant for this machine, of several the one that would be chosen; write nothing.

    Raises LoadError.
    """
    spec = parse_spec(settings.variant or "")
    variants = find_variants(
        spec,
        cache_dir=settings.cache_dir,
        token=settings.hub_token_value,
        local_files_only=settings.local_files_only,
    )
    choice = plan_here(variants, settings, settings.device)
    if choice.plan is None:
        raise LoadError("; ".join([choice.reason, *(one.reason for one in choice.losers)]))
    chosen = choice.plan.variant
    exact = parse_spec(name_of(spec, chosen))
    is_here = _is_here(exact, settings.cache_dir)
    return Needs(0 if is_here else chosen.weight_bytes, choice.plan.fullest.total, exact)


def _is_here(spec: VariantSpec, cache_dir: Path | None) -> bool:
    if spec.folder is not None:
        return True  # its headers were read; opening a clone's branch would write it out
    try:
        in_cache = built_cache(spec, cache_dir) or cache_dir
        open_snapshot(spec, cache_dir=in_cache, local_files_only=True)
    except LoadError:
        return False
    return True


def check_variant(named: NamedVariant) -> Finding:
    """Look at what was found of one variant."""
    name, needs = named.name, named.needs
    if isinstance(needs, LoadError):
        return fix("variant", f"{name}: {needs}", "name another variant, or mend what is said")
    if needs.download_bytes:
        size = machine.gb(needs.download_bytes)
        if needs.spec is not None and is_demo(needs.spec):
            return ok("variant", f"{name} is built when it is served: {size}")
        return warning("variant", f"{name} must be downloaded: {size}", f"tetrad download {name}")
    return ok("variant", f"{name} is on this machine")


def download_bytes(named: Sequence[NamedVariant]) -> int | None:
    """Add up what must be downloaded; None where nothing is known of any variant."""
    known = [one.needs.download_bytes for one in named if isinstance(one.needs, Needs)]
    return sum(known) if known else None


def check_memory_of(device: str, named: Sequence[NamedVariant]) -> Finding:
    """Look at one device as the settings name it, and at the variants that go there together.

    Raises BackendError for a device that is not there.
    """
    place = one_device(device)
    known = [one.needs.memory_bytes for one in named if isinstance(one.needs, Needs)]
    needed = sum(known) if known else None
    if known and device == "auto" and torch.cuda.device_count() > 1:
        needed = max(known)  # each engine takes the GPU that has most free when it starts
    return machine.check_memory(free_device_bytes(place), needed, str(place), len(known))
