"""Tests mirror the source, so that each is found from the other.

`tests/engine/attention/test_paged.py` tests `engine/attention/paged.py`, and so would
`test_paged_with_graphs.py`. Tests of a package as a whole are named after it. What crosses packages
lies in `tests/end_to_end`, what runs other people's clients in `tests/clients`, what needs a GPU in
`tests/gpu`, what is about the project beside them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent
MIRRORED = ["engine", "loaders", "native", "service"]
ELSEWHERE = {"benchmarks", "clients", "docs", "docs_pages", "end_to_end", "gpu"}


@pytest.mark.parametrize("package", MIRRORED)
def test_each_test_file_is_named_after_a_module_of_the_mirrored_folder(package: str) -> None:
    test_files = [path.relative_to(TESTS) for path in (TESTS / package).rglob("test_*.py")]
    assert test_files
    assert [str(path) for path in sorted(test_files) if not is_named_after_a_module(path)] == []


def test_other_folders_with_tests_are_those_for_what_crosses_packages() -> None:
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")}
    assert folders - set(MIRRORED) <= ELSEWHERE


def is_named_after_a_module(test_file: Path) -> bool:
    subject = test_file.stem.removeprefix("test_")
    return any(
        subject == name or subject.startswith(f"{name}_")
        for name in names_in(SOURCE / test_file.parent)
    )


def names_in(source_folder: Path) -> set[str]:
    """Names of the folder's modules and packages, and the folder's own."""
    inside = {path.stem for path in source_folder.glob("*.py")}
    packages = {path.parent.name for path in source_folder.glob("*/__init__.py")}
    return (inside | packages | {source_folder.name}) - {"__init__"} if inside else set()
