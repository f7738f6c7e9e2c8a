"""What the doctor says of Triton, on facts that are made up and on folders that are real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loaders.planning.driver import DriverAnswer, FoundDevice
from service.doctor import examine, places, triton_needs
from service.doctor.triton_needs import TritonFacts, cache_folder, check_cache, check_triton
from service.settings import Settings

WELL = TritonFacts("3.7.1", None, Path("/triton/bin/ptxas"), True)
SLOWLY = "the reference kernels serve, slowly"


def test_triton_with_all_it_needs_is_well():
    finding = check_triton(WELL)
    assert (finding.level.value, finding.found) == ("ok", "3.7.1, with ptxas")


@pytest.mark.parametrize(
    ("facts", "told", "remedy"),
    [
        (
            TritonFacts(None, "ImportError:\nno x", None, True),
            "(ImportError: no x)",
            "install triton",
        ),
        (TritonFacts("3.7.1", None, None, True), "lacks its assembler, ptxas", "TRITON_PTXAS_PATH"),
        (TritonFacts("3.7.1", None, WELL.ptxas, False), "no Python.h", "python3-dev"),
    ],
)
def test_what_triton_lacks_is_named_with_what_to_do(facts, told, remedy):
    finding = check_triton(facts)
    assert finding.level.value == "warning"
    assert told in finding.found
    assert SLOWLY in finding.found
    assert remedy in finding.command


def test_a_triton_that_cannot_be_imported_is_told_with_its_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    facts = triton_needs.read_triton_facts()
    assert facts.version is None
    assert "triton" in facts.problem


@pytest.mark.skipif(sys.platform != "linux", reason="there is no Triton elsewhere")
def test_an_installed_triton_is_found_with_its_assembler(monkeypatch):
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    facts = triton_needs.read_triton_facts()
    assert facts.version
    assert facts.ptxas.name == "ptxas"


@pytest.mark.parametrize(
    ("compiler", "there", "found"),
    [
        (None, ["gcc", "clang"], "gcc"),
        (None, ["clang"], "clang"),
        (None, ["cc"], None),  # which Triton does not look for
        ("cc", ["cc", "gcc"], "cc"),
        ("icc", ["gcc"], None),
    ],
)
def test_the_c_compiler_is_the_one_that_triton_would_take(
    monkeypatch, tmp_path, compiler, there, found
):
    for name in there:
        program = tmp_path / name
        program.write_text("")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler is not None:
        monkeypatch.setenv("CC", compiler)
    assert triton_needs.find_c_compiler() == (None if found is None else str(tmp_path / found))


def test_the_cache_folder_is_the_one_that_triton_takes(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert cache_folder() == tmp_path / ".triton" / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path):
    assert check_cache(tmp_path / "a", places.write_and_remove).level.value == "ok"
    (tmp_path / "file").write_text("")
    finding = check_cache(tmp_path / "file" / "b", places.write_and_remove)
    assert finding.level.value == "warning"
    assert SLOWLY in finding.found
    assert "TRITON_CACHE_DIR" in finding.command


@pytest.mark.parametrize("has_gpu", [True, False])
def test_triton_is_looked_at_only_where_there_is_a_gpu(monkeypatch, tmp_path, has_gpu):
    card = FoundDevice("NVIDIA A10G", "GPU-1", 23028 * 2**20, 0, (8, 6))
    answer = DriverAnswer((card,), "580.65.06", (13, 0)) if has_gpu else DriverAnswer()
    monkeypatch.setattr(examine, "ask_driver", lambda: answer)
    settings = Settings(device="cpu", local_files_only=True, cache_dir=tmp_path)
    named = examine.checks(settings)
    names = [name for name, _ in named if name.startswith("triton")]
    assert names == (["triton", "triton cache"] if has_gpu else [])
    if not has_gpu:
        found = dict(named)["compilers"]()
        assert (found.level.value, found.found) == ("ok", "not needed without a GPU, nor is Triton")
