"""The list of wheels follows the project's constraints, and gaps in it are found."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu.wheels import LOCK, ROOT, Wheel, missing, read_lock, read_wheel, tree_files

if TYPE_CHECKING:
    from pathlib import Path


def wheel(name: str, version: str, *requirements: str) -> Wheel:
    return Wheel(name, version, tuple(map(Requirement, requirements)))


def versions(path: Path) -> dict[str, str]:
    entries = (entry.split("==") for entry in read_lock(path.read_text()))
    return {canonicalize_name(name): version for name, version in entries}


def test_versions_are_those_of_the_constraints():
    constraints, wheels = versions(ROOT / "constraints.txt"), versions(LOCK)
    known = wheels.keys() & constraints.keys()
    assert {name: wheels[name] for name in known} == {name: constraints[name] for name in known}
    assert wheels.keys() - known <= {"truststore"}  # httpx2's own, which constraints leave open


def test_what_a_wheel_needs_and_nobody_carries_is_told():
    assert missing([wheel("a", "1", "b>=2", "torch>=9")]) == ["a needs b>=2, which is not here"]


def test_a_version_too_old_is_told():
    found = missing([wheel("a", "1", "b>=2"), wheel("b", "1.9")])
    assert found == ["a needs b>=2, 1.9 is here"]


def test_names_are_compared_as_indexes_do():
    assert missing([wheel("a", "1", "B_c"), wheel("b-c", "1")]) == []


def test_other_systems_and_extras_that_nobody_asks_for_need_nothing():
    wheels = [wheel("a", "1", 'b; sys_platform == "win32"', 'c; extra == "more"')]
    assert missing(wheels) == []


def test_an_extra_that_another_asks_for_counts():
    wheels = [wheel("a", "1", "b[more]"), wheel("b", "1", 'c; extra == "more"')]
    assert missing(wheels) == ['b needs c; extra == "more", which is not here']


def test_a_wheel_says_what_it_needs(tmp_path):
    file = tmp_path / "a_b-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a_b/_vendor/c-1.dist-info/METADATA", "Name: c\n")
        archive.writestr(
            "a_b-1.0.dist-info/METADATA", "Name: A_b\nVersion: 1.0\nRequires-Dist: d\n"
        )
    assert read_wheel(file) == wheel("a-b", "1.0", "d")


def test_the_tree_holds_this_file():
    assert ROOT / "pyproject.toml" in tree_files()
