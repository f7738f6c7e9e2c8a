"""Every check of the doctor's on facts that are made up: fine, doubtful, to be fixed."""

from __future__ import annotations

import errno
import resource
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from engine.execution import cpu_kernels
from loaders.demo.repository import find_snapshot
from loaders.errors import HubError, LoadError
from loaders.planning.driver import DriverAnswer, FoundDevice
from loaders.repository.hub import HubProbe
from service.doctor import gpus, hub, machine, places, software
from service.doctor.examine import Facts, check_settings, checks, examine
from service.doctor.finding import Level, ok
from service.doctor.gpus import Gpu, TorchBuild
from service.doctor.needs import NamedVariant, Needs, check_variant
from service.errors import SettingsError
from service.settings import Settings

CARD = Gpu("NVIDIA A10G", (8, 6), "580.65.06", 23028)
BUILD = TorchBuild("2.13.0", "13.0", True, ("sm_75", "sm_80", "sm_90", "compute_90"))


def changed(facts, **fields):
    names = facts.__dataclass_fields__
    return type(facts)(**{name: getattr(facts, name) for name in names} | fields)


def assert_is(finding, level: str, told: str = "") -> None:
    assert finding.level.value == level, finding
    assert told in finding.found
    assert "\n" not in finding.found
    if finding.level is Level.FIX:
        assert finding.command


@pytest.mark.parametrize(
    ("found", "wanted", "level"),
    [("3.11.7", ">=3.11", "ok"), ("3.11.7", None, "warning"), ("3.10.1", ">=3.11", "fix")],
)
def test_python(found, wanted, level):
    assert_is(software.check_python(found, wanted), level, found)


def test_packages():
    installed = {"torch": "2.13.0+cpu", "rich": "14.0"}.get
    extra = "gguf>=0.17; extra == 'demo'"
    assert_is(software.check_packages(["torch>=2.11", "rich>=14", extra], installed), "ok", "2")
    assert_is(software.check_packages(None, installed), "warning")
    finding = software.check_packages(["torch>=3", "typer>=0.20"], installed)
    assert_is(finding, "fix", "torch 2.13.0+cpu (needs >=3), typer is missing (needs >=0.20)")
    assert "'torch>=3' 'typer>=0.20'" in finding.command


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ((False, False, False), "ok"),
        ((True, True, True), "ok"),
        ((True, False, True), "warning"),
        ((True, True, False), "warning"),
    ],
)
def test_compilers(facts, level):
    names = ("has_gpu", "has_cuda_compiler", "has_c_compiler")
    assert_is(software.check_compilers(**dict(zip(names, facts, strict=True))), level)


@pytest.mark.parametrize(
    ("kernels", "reason", "level", "told", "command"),
    [
        ("compiled", None, "ok", "compiled", None),
        ("PyTorch's", "this CPU lacks X", "ok", "PyTorch's: this CPU lacks X", None),
        ("PyTorch's", "X is set; unset it", "warning", "PyTorch's: X is set", "unset it"),
    ],
)
def test_cpu_kernels(kernels, reason, level, told, command):
    finding = software.check_cpu_kernels(kernels, reason)
    assert_is(finding, level)
    assert (finding.found, finding.command) == (told, command)


def test_cpu_kernels_that_are_asked_for_by_name_and_cannot_be_used_are_to_be_fixed(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "this CPU lacks avx512_f")
    settings = Settings(device="cpu", cpu_kernels="native", local_files_only=True)
    assert_is(dict(checks(settings))["cpu kernels"](), "fix", "this CPU lacks avx512_f")


@pytest.mark.parametrize(
    ("gpus_found", "build", "level", "told"),
    [
        ([CARD], BUILD, "ok", "driver 580.65.06, CUDA 13.0"),
        ([], BUILD, "warning", "the CPU is used"),
        ([CARD], changed(BUILD, cuda=None), "fix", "built for CPUs"),
        ([changed(CARD, driver="570.1")], BUILD, "fix", "too old for CUDA 13.0"),
        ([CARD], changed(BUILD, sees_gpu=False), "fix", "finds no GPU"),
    ],
)
def test_driver(gpus_found, build, level, told):
    assert_is(gpus.check_driver(gpus_found, build), level, told)


@pytest.mark.parametrize(
    ("gpus_found", "backend", "level"),
    [
        ([], "int4pack", "ok"),
        ([CARD], "fast", "ok"),
        ([CARD], "reference", "warning"),
        ([changed(CARD, capability=(7, 0))], "fast", "fix"),
        ([changed(CARD, capability=(12, 0))], "fast", "ok"),  # from intermediate code
    ],
)
def test_kernels(gpus_found, backend, level):
    assert_is(gpus.check_kernels(gpus_found, BUILD, backend), level)


def test_what_slow_kernels_lack_is_named():
    old = changed(CARD, name="Tesla T4", capability=(7, 5))
    build = changed(BUILD, architectures=("sm_75", "sm_80"))
    found = gpus.check_kernels([old], build, "reference").found
    assert "Tesla T4 has compute capability 7.5, Triton's kernels need 8.0" in found
    assert "the reference kernels serve, slowly" in found


def test_cards_are_read_from_the_drivers_answer():
    card = FoundDevice("NVIDIA A10G", "GPU-1", 23028 * 2**20, 0, (8, 6))
    unknown = FoundDevice("NVIDIA X", "GPU-2", 2**30, 0)
    assert gpus.read_gpus(DriverAnswer((card, unknown), "580.65.06", (13, 0))) == [CARD]
    assert gpus.read_gpus(DriverAnswer()) == []


def test_a_driver_that_does_not_answer_is_to_be_fixed_as_it_says():
    problem = "driver/library version mismatch: it was updated; reboot"
    finding = gpus.check_driver([], BUILD, problem)
    assert_is(finding, "fix", "version mismatch")
    assert finding.command == "reboot"
    assert_is(gpus.check_driver([CARD], BUILD, "GPU 1: a GPU is lost; reboot"), "warning", "GPU 1")


@pytest.mark.parametrize(
    ("free", "needed", "level"),
    [(8e9, None, "ok"), (8e9, 4e9, "ok"), (8e9, 7e9, "warning"), (8e9, 9e9, "fix")],
)
def test_memory(free, needed, level):
    assert_is(machine.check_memory(free, needed, "cpu"), level, "8.00 GB free on cpu")


@pytest.mark.parametrize(
    ("memory", "cpus", "level"),
    [
        (None, None, "ok"),
        (8 * 10**9, 2.0, "ok"),
        (None, 0.5, "warning"),
        (5 * 10**8, 2.0, "fix"),
    ],
)
def test_container(memory, cpus, level):
    assert_is(machine.check_container(memory, cpus), level)


@pytest.mark.parametrize(
    ("size", "num_gpus", "level"),
    [
        (2**30, 2, "ok"),
        (2**26, 1, "ok"),
        (2**20, 0, "warning"),
        (None, 0, "warning"),
        (2**26, 2, "fix"),
    ],
)
def test_shared_memory(size, num_gpus, level):
    assert_is(machine.check_shared_memory(size, num_gpus), level)


@pytest.mark.parametrize(
    ("limit", "level"),
    [(65536, "ok"), (resource.RLIM_INFINITY, "ok"), (1024, "warning"), (128, "fix")],
)
def test_descriptors(limit, level):
    assert_is(machine.check_descriptors(limit), level)


@pytest.mark.parametrize(
    ("wall", "drift", "lead", "level", "told"),
    [
        (1.8e9, 0.0, None, "ok", "steady"),
        (1.8e9, 0.0, -3.0, "ok", "agrees with the hub's"),
        (1.8e9, 0.0, 600.0, "warning", "10 minutes ahead of"),
        (1.8e9, 0.0, -600.0, "warning", "10 minutes behind"),
        (1.8e9, 3.0, None, "warning", "jumped by 3.0 s"),
        (5.0, 0.0, None, "fix", "the year 1970"),
    ],
)
def test_clock(wall, drift, lead, level, told):
    assert_is(machine.check_clock(wall, drift, lead), level, told)
    assert abs(machine.measure_drift()) < 60


def test_folders_are_really_written_and_left_as_they_were(tmp_path):
    write = places.write_and_remove
    assert_is(places.check_folder("cache", tmp_path, write), "ok", "written")
    assert_is(places.check_folder("cache", tmp_path / "a" / "b", write), "ok", "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert_is(places.check_folder("cache", tmp_path / "file" / "b", write), "fix", "Not a dir")
    assert machine.free_disk(tmp_path / "a" / "b") > 0


def test_where_files_and_batches_go_is_looked_at(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def finding(**fields):
        named = dict(checks(Settings(local_files_only=True, **fields)))
        return named["state folder"]()

    assert_is(finding(state_dir=tmp_path / "new"), "ok", "new/batches can be made")
    assert not (tmp_path / "new").exists()
    unusable = finding(state_dir=tmp_path / "file")
    assert_is(unusable, "fix", "file/batches cannot be written: Not a directory")
    assert unusable.command.endswith("or set TETRAD_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # nobody asked for batches
    assert_is(finding(), "warning", "file/tetrad/batches cannot be written")


@pytest.mark.parametrize(
    ("free", "needed", "level"),
    [
        (9e9, None, "ok"),
        (9e9, 0, "ok"),
        (1e9, 0, "ok"),
        (9e9, 8e9, "ok"),
        (1e9, None, "warning"),
        (9e9, 1e10, "fix"),
    ],
)
def test_disk(free, needed, level):
    assert_is(places.check_disk(Path("/cache"), free, needed), level, "GB free for /cache")


def test_sockets(monkeypatch, tmp_path):
    assert_is(places.check_sockets(places.open_sockets), "ok")

    def refuse() -> str:
        raise OSError(errno.EACCES, "Permission denied")

    assert_is(places.check_sockets(refuse), "fix", "Permission denied")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 80)))
    finding = places.check_sockets(places.open_sockets)
    assert_is(finding, "warning", "too long a path")


def test_port():
    def nothing(host: str, port: int) -> None:
        return

    def forbidden(host: str, port: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    assert_is(places.check_port("127.0.0.1", 0, forbidden), "ok")
    assert_is(places.check_port("127.0.0.1", 8000, nothing), "ok", "127.0.0.1:8000 is free")
    assert_is(places.check_port("127.0.0.1", 80, nothing), "warning")
    finding = places.check_port("127.0.0.1", 80, forbidden)
    assert_is(finding, "fix", "more rights")
    assert "8080" in finding.command


def test_a_port_that_is_taken_is_found():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = places.check_port("127.0.0.1", port, places.bind_for_a_moment)
        assert_is(finding, "fix", "in use")
        assert str(port + 1) in finding.command


ANSWER = HubProbe("https://hub")


@pytest.mark.parametrize(
    ("answer", "of_hub", "of_token"),
    [
        (None, "ok", "ok"),
        (changed(ANSWER, token="valid"), "ok", "ok"),
        (ANSWER, "ok", "warning"),
        (changed(ANSWER, token="refused"), "ok", "fix"),
        (changed(ANSWER, problem="ConnectError"), "warning", "ok"),
    ],
)
def test_hub_and_token(answer, of_hub, of_token):
    endpoint = "https://hub" if answer else "not asked: local_files_only is set"
    assert_is(hub.check_hub(answer), of_hub, endpoint)
    assert_is(hub.check_token(answer), of_token)


@pytest.mark.parametrize(
    ("needs", "level", "told"),
    [
        (Needs(0, 10), "ok", "on this machine"),
        (Needs(4 * 10**9, 10), "warning", "4.00 GB"),
        (HubError("no such branch"), "fix", "no such branch"),
    ],
)
def test_variant(needs, level, told):
    assert_is(check_variant(NamedVariant("a/b", "auto", needs)), level, told)


@pytest.mark.parametrize("name", ["someone/nothing", "a b", "./nowhere", "a/b/file.gguf"])
def test_a_variant_that_cannot_be_had_is_to_be_fixed(tmp_path, name):
    settings = Settings(variant=name, local_files_only=True, cache_dir=tmp_path)
    assert_is(check_variant(*Facts(settings).named), "fix")


def test_what_variants_need_is_read_from_their_headers(tiny_repo):
    large, small = f"{tiny_repo.gptq_repo}:gptq-8bit-128g-actorder_True", tiny_repo.gptq_repo
    access = {"local_files_only": True, "cache_dir": tiny_repo.cache_dir, "device": "cpu"}
    settings = Settings(variant=large, also=[f"x={small}:main", "a/b"], **access, port=0)
    of_large, of_small, of_none = (one.needs for one in Facts(settings).named)
    assert of_large.download_bytes == of_small.download_bytes == 0
    assert of_large.memory_bytes > of_small.memory_bytes > 10**6
    assert isinstance(of_none, LoadError)
    findings = [check() for name, check in checks(settings) if name in ("variant", "memory")]
    assert [finding.level.value for finding in findings[:3]] == ["ok", "ok", "fix"]
    together = machine.gb(of_large.memory_bytes + of_small.memory_bytes)
    (memory,) = findings[3:]
    assert f"2 variants take {together} with KV cache and process" in memory.found


def test_a_clones_branch_is_looked_at_where_it_lies(tiny_repo, tmp_path):
    folder = find_snapshot(tiny_repo.cache_dir, tiny_repo.gptq_repo, "main")
    clone = shutil.copytree(folder, tmp_path / "clone")
    for command in (
        "init -q -b main",
        "add .",
        "commit -qm a",
        "branch b",
        "commit -qm c --allow-empty",
    ):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, "-C", str(clone), *command.split()], check=True)
    cache = tmp_path / "cache"
    settings = Settings(variant=f"{clone}:b", cache_dir=cache, device="cpu")
    (named,) = Facts(settings).named
    assert_is(check_variant(named), "ok", "on this machine")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("absent", "level", "told"),
    [([], "ok", "stock"), (["optimum", "gptqmodel"], "fix", "gptqmodel")],
)
def test_the_stock_backend_is_its_packages(monkeypatch, tmp_path, absent, level, told):
    monkeypatch.setattr("service.doctor.examine.absent_packages", lambda method: absent)
    settings = Settings(backend="stock", device="cpu", local_files_only=True, cache_dir=tmp_path)
    found = {finding.name: finding for finding in examine(checks(settings)[:6])}
    assert_is(found["kernels"], level, told)


def test_each_device_and_backend_is_looked_at(tmp_path):
    also = [{"variant": "a/b", "device": "cuda:99"}]
    settings = Settings(device="cpu", also=also, local_files_only=True, cache_dir=tmp_path)
    found = [finding for finding in examine(checks(settings)[:6]) if finding.name == "kernels"]
    assert [finding.level.value for finding in found] == ["ok", "fix"]


def test_settings():
    def refused() -> None:
        raise SettingsError("host is 0.0.0.0 and no key is set")

    assert_is(check_settings(lambda: None, []), "ok")
    assert_is(check_settings(lambda: None, ["TETRAD_PROT"]), "warning", "TETRAD_PROT")
    assert_is(check_settings(refused, []), "fix", "no key is set")


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"device": "tpu"}, "tpu"), ({"device": "cuda:99"}, "cuda:99"), ({"backend": "x"}, "'x'")],
)
def test_settings_that_no_device_or_kernel_can_follow_are_to_be_fixed(tmp_path, setting, told):
    settings = Settings(local_files_only=True, cache_dir=tmp_path, port=0, **setting)
    found = {finding.name: finding for finding in examine(checks(settings))}
    assert_is(found["kernels"], "fix", told)


def test_a_check_that_fails_itself_is_reported_and_the_others_go_on():
    def broken():
        raise ZeroDivisionError("division by zero")

    found = list(examine([("first", broken), ("second", lambda: ok("second", "fine"))]))
    assert_is(found[0], "warning", "could not be checked: ZeroDivisionError: division by zero")
    assert found[0].name == "first"
    assert_is(found[1], "ok", "fine")
