"""Reads the facts of this machine, and has each check look at its own.

A check that fails itself is reported as such; the others go on.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from loaders.cache import default_cache_dir
from loaders.errors import LoadError
from loaders.hub import HubAnswer, default_hub_cache, probe_hub
from loaders.kernels.protocol import LayerShape
from loaders.kernels.resolve import resolve_backend
from loaders.load import open_snapshot
from loaders.memory import free_bytes
from loaders.named_variants import find_variants
from loaders.quantization import PackedFormat
from loaders.spec import parse_spec
from service.choice import name_of, one_device, plan_here
from service.doctor import gpus, hub, machine, places, software
from service.doctor.finding import Finding, fix, ok, warning
from service.errors import SettingsError
from service.settings import read_key, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loaders.spec import VariantSpec
    from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Needs:
    """What a variant takes."""

    download_bytes: int  # 0 where its files are here
    memory_bytes: int


class Facts:
    """What is asked for once, and looked at by several checks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def cards(self) -> list[gpus.Gpu]:
        """The cards that the driver knows."""
        return gpus.read_gpus()

    @cached_property
    def build(self) -> gpus.TorchBuild:
        """The installed PyTorch."""
        return gpus.TorchBuild(
            version=torch.__version__,
            cuda=torch.version.cuda,
            sees_gpu=torch.cuda.is_available(),
            architectures=tuple(torch.cuda.get_arch_list()),
        )

    @cached_property
    def hub_answer(self) -> HubAnswer | None:
        """The hub's answer; None where downloads are off."""
        return None if self._settings.local_files_only else probe_hub(self.token)

    @property
    def token(self) -> str | None:
        """The hub's token that was set."""
        token = self._settings.hub_token
        return None if token is None else token.get_secret_value()

    @property
    def device(self) -> torch.device:
        """Where a model would go. Raises BackendError."""
        return one_device(self._settings.device)

    @property
    def backend(self) -> str:
        """What would run an ordinary 4-bit layer."""
        packed = PackedFormat("gptq", "gptq", bits=4, group_size=128)
        shape = LayerShape(packed, 4096, 4096, self.device)
        return resolve_backend(self._settings.backend, shape)[0].name

    @property
    def cache_dir(self) -> Path:
        """Where what is built and learnt here is kept."""
        return self._settings.cache_dir or default_cache_dir()

    @property
    def download_dir(self) -> Path:
        """Where downloads go."""
        return self._settings.cache_dir or default_hub_cache()

    @cached_property
    def needs(self) -> Needs | LoadError | None:
        """What the named variant takes, or why that is not known; None where none is named."""
        if self._settings.variant is None:
            return None
        try:
            return find_needs(self._settings, self.token)
        except LoadError as error:
            return error

    @property
    def known_needs(self) -> Needs | None:
        """What the named variant takes, where that is known."""
        return self.needs if isinstance(self.needs, Needs) else None


def find_needs(settings: Settings, token: str | None) -> Needs:
    """Plan the variant for this machine, of several the one that would be chosen.

    Raises LoadError.
    """
    spec = parse_spec(settings.variant or "")
    cache_dir, is_local = settings.cache_dir, settings.local_files_only
    variants = find_variants(spec, cache_dir=cache_dir, token=token, local_files_only=is_local)
    choice = plan_here(variants, settings, settings.device)
    if choice.plan is None:
        raise LoadError("; ".join([choice.reason, *(one.reason for one in choice.losers)]))
    chosen = choice.plan.variant
    is_here = _is_here(parse_spec(name_of(spec, chosen)), cache_dir)
    return Needs(0 if is_here else chosen.weight_bytes, choice.plan.fullest.total)


def _is_here(spec: VariantSpec, cache_dir: Path | None) -> bool:
    try:
        open_snapshot(spec, cache_dir=cache_dir, local_files_only=True)
    except LoadError:
        return False
    return True


def check_variant(name: str | None, needs: Needs | LoadError | None) -> Finding:
    """needs: or why they could not be found."""
    if name is None or needs is None:
        return ok("variant", "none named")
    if isinstance(needs, LoadError):
        return fix("variant", f"{name}: {needs}", "name another variant, or mend what is said")
    if needs.download_bytes:
        size = machine.gb(needs.download_bytes)
        return warning("variant", f"{name} must be downloaded: {size}", f"tetrad download {name}")
    return ok("variant", f"{name} is on this machine")


def check_settings(read: Callable[[], object], unknown: list[str]) -> Finding:
    """read: reads the key, or raises SettingsError. unknown: variables that set nothing."""
    try:
        read()
    except SettingsError as error:
        return fix("settings", str(error), "export TETRAD_API_KEY=…")
    if unknown:
        names = " ".join(unknown)
        return warning("settings", f"{', '.join(unknown)} set nothing", f"unset {names}")
    return ok("settings", "fit together")


def checks(settings: Settings) -> list[tuple[str, Callable[[], Finding]]]:
    """Return every check by name, each with the facts that it looks at."""
    facts = Facts(settings)
    return [
        (
            "python",
            lambda: software.check_python(platform.python_version(), software.wanted_python()),
        ),
        (
            "packages",
            lambda: software.check_packages(software.requirements(), software.installed_version),
        ),
        ("gpu", lambda: gpus.check_driver(facts.cards, facts.build)),
        ("kernels", lambda: gpus.check_kernels(facts.cards, facts.build, facts.backend)),
        (
            "compilers",
            lambda: software.check_compilers(
                has_gpu=bool(facts.cards),
                has_cuda_compiler=software.has_cuda_compiler(),
                has_c_compiler=software.has_c_compiler(),
            ),
        ),
        ("settings", lambda: check_settings(partial(read_key, settings), unknown_variables())),
        ("hub", lambda: hub.check_hub(facts.hub_answer)),
        ("token", lambda: hub.check_token(facts.hub_answer)),
        ("variant", lambda: check_variant(settings.variant, facts.needs)),
        (
            "cache folder",
            lambda: places.check_folder("cache folder", facts.cache_dir, places.write_and_remove),
        ),
        (
            "downloads",
            lambda: places.check_folder("downloads", facts.download_dir, places.write_and_remove),
        ),
        ("disk", lambda: _disk(facts)),
        ("memory", lambda: _memory(facts)),
        (
            "container",
            lambda: machine.check_container(machine.read_memory_limit(), machine.read_cpu_limit()),
        ),
        (
            "shared memory",
            lambda: machine.check_shared_memory(machine.read_shared_memory(), len(facts.cards)),
        ),
        ("sockets", lambda: places.check_sockets(places.open_sockets)),
        (
            "port",
            lambda: places.check_port(settings.host, settings.port, places.bind_for_a_moment),
        ),
        ("descriptors", lambda: machine.check_descriptors(machine.read_descriptor_limit())),
        ("clock", lambda: _clock(facts)),
    ]


def _disk(facts: Facts) -> Finding:
    needs = facts.known_needs
    needed = None if needs is None else needs.download_bytes
    return places.check_disk(facts.download_dir, machine.free_disk(facts.download_dir), needed)


def _memory(facts: Facts) -> Finding:
    needs = facts.known_needs
    needed = None if needs is None else needs.memory_bytes
    return machine.check_memory(free_bytes(facts.device), needed, str(facts.device))


def _clock(facts: Facts) -> Finding:
    lead_s = None if facts.hub_answer is None else facts.hub_answer.clock_lead_s
    return machine.check_clock(time.time(), machine.measure_drift(), lead_s)


def examine(named_checks: list[tuple[str, Callable[[], Finding]]]) -> Iterator[Finding]:
    """Make the checks one after the other."""
    for name, check in named_checks:
        try:
            yield check()
        except LoadError as error:  # settings that nothing here can follow
            yield fix(name, str(error), "tetrad serve --help, for what --device and --backend take")
        except Exception as error:  # a broken machine breaks checks in ways that nobody foresees
            yield warning(name, f"could not be checked: {type(error).__name__}: {error}")
