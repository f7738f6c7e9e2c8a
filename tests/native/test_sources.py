"""The compiled library is named by what it was compiled from."""

from __future__ import annotations

import pytest

from native import sources
from native.sources import COMPILED, SOURCE, library_path, source_hash


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.cpp").write_text("int one();")
    (tmp_path / "one.h").write_text("int two();")
    return tmp_path


def fresh_hash(folder):
    source_hash.cache_clear()
    return source_hash(folder)


def test_what_changes_the_sources_changes_the_name(folder):
    hashes = [fresh_hash(folder)]
    (folder / "one.h").write_text("int three();")
    hashes.append(fresh_hash(folder))
    (folder / "one.h").rename(folder / "two.h")
    hashes.append(fresh_hash(folder))
    (folder / "three.cpp").write_text("")
    hashes.append(fresh_hash(folder))
    assert len(set(hashes)) == len(hashes)
    assert library_path(folder / "out", source=folder).name == f"kernels-{hashes[-1]}.so"


def test_what_is_moved_from_one_file_to_its_neighbour_changes_the_name(folder):
    before = fresh_hash(folder)
    (folder / "one.cpp").write_text("int one();int two();")
    (folder / "one.h").write_text("")
    assert fresh_hash(folder) != before


def test_another_way_to_compile_changes_the_name(folder, monkeypatch):
    before = fresh_hash(folder)
    monkeypatch.setattr(sources, "COMPILE_FLAGS", ("-O0",))
    assert fresh_hash(folder) != before


def test_what_is_no_source_does_not_change_the_name(folder):
    before = fresh_hash(folder)
    (folder / "one.cpp~").write_text("")
    assert fresh_hash(folder) == before


def test_the_library_lies_in_the_package():
    assert library_path().parent == COMPILED == SOURCE.parent / "compiled"


def test_the_oldest_pytorch_is_what_the_headers_are_told():
    # The form that torch/csrc/stable/version.h describes: major, minor, then six bytes of zeros.
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in sources.COMPILE_FLAGS
