"""Reads the facts of this machine, and has each check look at its own.

A check that fails itself is reported as such; the others go on.
"""

from __future__ import annotations

import platform
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from engine.errors import EngineStartError
from loaders.cache import default_cache_dir
from loaders.errors import LoadError
from loaders.memory import cgroup
from loaders.model.kernels.protocol import LayerShape
from loaders.model.kernels.resolve import resolve_backend
from loaders.model.stock import STOCK, absent_packages
from loaders.planning.driver import DriverAnswer, ask_driver
from loaders.quantization.packed_format import PackedFormat
from loaders.repository.hub import HubProbe, default_hub_cache, probe_hub
from service.doctor import gpus, hub, machine, places, software, triton_needs
from service.doctor.chat_template import check_chat_template
from service.doctor.finding import Finding, fix, ok, warning
from service.doctor.needs import (
    NamedVariant,
    check_memory_of,
    check_variant,
    download_bytes,
    read_needs,
)
from service.errors import SettingsError
from service.settings import read_key, unknown_variables
from service.worker.branch_choice import one_device
from service.worker.cpu_kernels import choose_cpu_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.settings import Settings, WorkerSettings

    Check = Callable[[], Finding]


class Facts:
    """What is asked for once, and looked at by several checks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def driver(self) -> DriverAnswer:
        """What the driver tells."""
        return ask_driver()

    @cached_property
    def gpus_found(self) -> list[gpus.Gpu]:
        """The GPUs that the driver knows."""
        return gpus.read_gpus(self.driver)

    @cached_property
    def triton(self) -> triton_needs.TritonFacts:
        """What is installed of what kernels are built with."""
        return triton_needs.read_triton_facts()

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
    def hub_answer(self) -> HubProbe | None:
        """The hub's answer; None where downloads are off."""
        return None if self._settings.local_files_only else probe_hub(self.token)

    @property
    def token(self) -> str | None:
        """The hub's token that was set."""
        return self._settings.hub_token_value

    @property
    def cache_dir(self) -> Path:
        """Where what is built and learnt here is kept."""
        return self._settings.cache_dir or default_cache_dir()

    @property
    def download_dir(self) -> Path:
        """Where downloads go."""
        return self._settings.cache_dir or default_hub_cache()

    @cached_property
    def named(self) -> list[NamedVariant]:
        """What each variant takes that the settings name."""
        return read_needs(self._settings.variants())


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


def checks(settings: Settings) -> list[tuple[str, Check]]:
    """Return every check by name, each with the facts that it looks at."""
    facts = Facts(settings)
    return [
        *_software_checks(facts, settings),
        ("settings", lambda: check_settings(partial(read_key, settings), unknown_variables())),
        ("hub", lambda: hub.check_hub(facts.hub_answer)),
        ("token", lambda: hub.check_token(facts.hub_answer)),
        *_variant_checks(facts, settings),
        *_machine_checks(facts, settings),
        ("clock", lambda: _clock(facts)),
    ]


def _software_checks(facts: Facts, settings: Settings) -> Iterator[tuple[str, Check]]:
    python = platform.python_version()
    yield "python", lambda: software.check_python(python, software.wanted_python())
    installed = software.installed_version
    yield "packages", lambda: software.check_packages(software.requirements(), installed)
    yield "gpu", lambda: gpus.check_driver(facts.gpus_found, facts.build, facts.driver.problem)
    # Each variant may have a device and a backend of its own.
    for device, backend in dict.fromkeys((v.device, v.backend) for v in settings.variants()):
        yield "kernels", partial(_kernels, facts, device, backend)
    choices = {(v.device, v.cpu_kernels, v.batch_invariant): v for v in settings.variants()}
    for one in choices.values():
        yield "cpu kernels", partial(_cpu_kernels, one)
    yield (
        "compilers",
        lambda: software.check_compilers(
            has_gpu=bool(facts.gpus_found),
            has_cuda_compiler=software.has_cuda_compiler(),
            has_c_compiler=triton_needs.find_c_compiler() is not None,
        ),
    )
    if facts.gpus_found:
        yield from _triton_checks(facts)


def _triton_checks(facts: Facts) -> Iterator[tuple[str, Check]]:
    yield "triton", lambda: triton_needs.check_triton(facts.triton)
    folder, write = triton_needs.cache_folder(), places.write_and_remove
    yield "triton cache", partial(triton_needs.check_cache, folder, write)


def _kernels(facts: Facts, device: str, backend: str) -> Finding:
    """Say what would run an ordinary 4-bit layer. Raises BackendError."""
    place = one_device(device)
    if backend == STOCK:
        return gpus.check_stock(absent_packages("gptq"))
    packed = PackedFormat("gptq", "gptq", bits=4, group_size=128)
    capability = torch.cuda.get_device_capability(place) if place.type == "cuda" else None
    shape = LayerShape(packed, 4096, 4096, place, compute_capability=capability)
    found = resolve_backend(backend, shape)[0].name
    return gpus.check_kernels(facts.gpus_found, facts.build, found)


def _cpu_kernels(settings: WorkerSettings) -> Finding:
    """Say what a variant's engine would compute with on a CPU. Raises BackendError."""
    device = one_device(settings.device)
    if device.type != "cpu":
        return ok("cpu kernels", f"without effect on {device}")
    try:
        chosen = choose_cpu_kernels(settings, device)
    except EngineStartError as error:
        return fix("cpu kernels", str(error), "tetrad serve --cpu-kernels auto")
    return software.check_cpu_kernels(str(chosen), chosen.reason)


def _variant_checks(facts: Facts, settings: Settings) -> Iterator[tuple[str, Check]]:
    """Check each variant that is named, then disk and memory for all of them together."""
    num_named = sum(one.variant is not None for one in settings.variants())
    if num_named == 0:
        yield "variant", lambda: ok("variant", "the demo, which needs no hub")
    for index in range(num_named):
        yield "variant", partial(_variant, facts, index)
        yield "chat template", partial(_chat_template, facts, settings, index)
    for name in ("cache folder", "downloads"):
        folder = facts.cache_dir if name == "cache folder" else facts.download_dir
        yield name, partial(places.check_folder, name, folder, places.write_and_remove)
    yield "disk", lambda: _disk(facts)
    for device in dict.fromkeys(one.device for one in settings.variants()):
        yield "memory", partial(_memory, facts, device)


def _variant(facts: Facts, index: int) -> Finding:
    return check_variant(facts.named[index])


def _chat_template(facts: Facts, settings: Settings, index: int) -> Finding:
    own = [one for one in settings.variants() if one.variant is not None][index]
    return check_chat_template(own, facts.named[index].needs)


def _disk(facts: Facts) -> Finding:
    free = machine.free_disk(facts.download_dir)
    return places.check_disk(facts.download_dir, free, download_bytes(facts.named))


def _memory(facts: Facts, device: str) -> Finding:
    return check_memory_of(device, [one for one in facts.named if one.device == device])


def _machine_checks(facts: Facts, settings: Settings) -> Iterator[tuple[str, Check]]:
    host, port = settings.host, settings.port
    yield (
        "container",
        lambda: machine.check_container(cgroup.read_memory_limit(), cgroup.read_cpu_limit()),
    )
    shared = machine.read_shared_memory
    yield "shared memory", lambda: machine.check_shared_memory(shared(), len(facts.gpus_found))
    yield "state folder", lambda: _state_folder(settings)
    yield "sockets", lambda: places.check_sockets(places.open_sockets)
    yield "port", lambda: places.check_port(host, port, places.bind_for_a_moment)
    yield "descriptors", lambda: machine.check_descriptors(machine.read_descriptor_limit())


def _state_folder(settings: Settings) -> Finding:
    """Look at where files and batches go; without that folder everything else is served."""
    return places.check_folder(
        "state folder",
        settings.batches_folder,
        places.write_and_remove,
        variable="TETRAD_STATE_DIR",
        is_needed=settings.state_dir is not None,
    )


def _clock(facts: Facts) -> Finding:
    lead_s = None if facts.hub_answer is None else facts.hub_answer.clock_lead_s
    return machine.check_clock(time.time(), machine.measure_drift(), lead_s)


def examine(named_checks: list[tuple[str, Check]]) -> Iterator[Finding]:
    """Make the checks one after the other."""
    for name, check in named_checks:
        try:
            yield check()
        except LoadError as error:  # settings that nothing here can follow
            yield fix(name, str(error), "tetrad serve --help, for what --device and --backend take")
        except Exception as error:  # a broken machine breaks checks in ways that nobody foresees
            yield warning(name, f"could not be checked: {type(error).__name__}: {error}")
