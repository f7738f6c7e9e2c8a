"""The glossary's tables of renamed things, held against the code.

A name that was replaced must not come back: every row's new name is in use where the row says, and
its old name is gone, from our packages or from the one that the row names.
"""

from __future__ import annotations

import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/glossary.md"
PACKAGES = ("engine", "loaders", "native", "service")


class Renamed(NamedTuple):
    """One row of the table "Renamed"."""

    module: str
    old: str
    new: str
    gone_from: tuple[str, ...]


def read_table(section: str) -> list[list[str]]:
    """Read the rows of the table under a heading, without backticks."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in lines[2:]  # after the heads and the rule below them
    ]


def read_renamed() -> list[Renamed]:
    return [
        Renamed(module, old, new, (gone_from,) if gone_from else PACKAGES)
        for module, old, new, gone_from in read_table("Renamed")
    ]


def sources_of(module: str, root: Path = ROOT) -> list[Path]:
    """List the source files of a module, or of all modules of a package."""
    path = root / module.replace(".", "/")
    file = path.with_suffix(".py")
    return sorted(path.rglob("*.py")) if path.is_dir() else [file] if file.is_file() else []


def identifiers_in(source: Path) -> set[str]:
    with source.open("rb") as file:
        return {
            token.string
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.NAME
        }


class Identifiers:
    """The identifiers of source files, each file read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._read: dict[Path, set[str]] = {}

    def where(self, name: str, module: str) -> list[str]:
        """List the files of a module or package in which a name occurs."""
        found = []
        for source in sources_of(module, self._root):
            if source not in self._read:
                self._read[source] = identifiers_in(source)
            if name in self._read[source]:
                found.append(str(source.relative_to(self._root)))
        return found


def find_mistakes(rows: list[Renamed], root: Path = ROOT) -> list[str]:
    """Say in sentences what the rows tell otherwise than the code."""
    identifiers = Identifiers(root)
    mistakes = []
    for row in rows:
        if not identifiers.where(row.new, row.module):
            mistakes.append(f"{row.module} does not have {row.new}, which was {row.old}")
        for package in row.gone_from:
            mistakes += [
                f"{file} has {row.old} again, which is {row.new} now"
                for file in identifiers.where(row.old, package)
            ]
    return mistakes


def test_new_names_are_in_use_and_old_ones_are_gone():
    rows = read_renamed()
    assert len(rows) > 100
    assert not find_mistakes(rows)


def test_no_row_is_there_twice():
    assert max(Counter((row.module, row.old) for row in read_renamed()).values()) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("class EngineEvent: ...\n", None),
        ("class EngineEvent: ...  # the Tidings of old\n", None),
        ("class EngineEvent: ...\nTidings = EngineEvent\n", "has Tidings again"),
        ("class Event: ...\n", "does not have EngineEvent"),
    ],
)
def test_a_name_that_comes_back_is_found(tmp_path, source, problem):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "engine/wire.py").write_text(source, encoding="utf-8")
    mistakes = find_mistakes([Renamed("engine.wire", "Tidings", "EngineEvent", PACKAGES)], tmp_path)
    assert (not mistakes) if problem is None else (problem in mistakes[0])


def test_a_name_may_be_in_use_outside_the_package_that_it_is_gone_from(tmp_path):
    for package in ("engine", "loaders"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "limits.py").write_text("class New: ...\n", encoding="utf-8")
    row = Renamed("engine.limits", "Old", "New", ("engine",))
    (tmp_path / "loaders/names.py").write_text("class Old: ...\n", encoding="utf-8")
    assert not find_mistakes([row], tmp_path)
    (tmp_path / "engine/names.py").write_text("class Old: ...\n", encoding="utf-8")
    assert find_mistakes([row], tmp_path)


def test_renamed_modules_lie_where_the_page_says_and_no_more_where_they_were():
    for module, before in read_table("Renamed modules"):
        assert sources_of(module), module
        assert not (ROOT / before.replace(".", "/")).with_suffix(".py").exists(), before


def test_moved_definitions_lie_where_the_page_says():
    identifiers = Identifiers()
    for name, module, _ in read_table("Moved definitions"):
        assert identifiers.where(name, module), f"{module} does not have {name}"
