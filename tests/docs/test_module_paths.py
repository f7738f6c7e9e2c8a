"""Every module and path that the pages name exists, and no package has two rows in a table.

Looked at is what stands in backticks or in fenced blocks: dotted names under our packages and
the tests (`engine.core.Engine`), and paths under the folders of this repository (`scripts/test`).
Nothing is imported: names are looked for in the sources, so PyTorch stays out of it.

History keeps the names of its time. Entries of docs/decisions.md before 2026-11-28, the day on
which modules moved into packages, are left out, and so are released versions in CHANGELOG.md; the
introduction of each page, and the later entries, are looked at.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
KEEPS_OLD_NAMES_BEFORE = "2026-11-28"

DOTTED = re.compile(r"(?<![\w./-])(?:engine|loaders|native|service|tests)(?:\.\w+)+(?![\w/])")
SLASHED = re.compile(
    r"(?<![\w./-])(?:engine|loaders|native|service|tests|scripts|docker|benchmarks|docs)/[\w.*/-]*"
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BACKTICKED = re.compile(r"`([^`\n]+)`")
TABLE_OF_PACKAGES = re.compile(r"^\| package \|.*\| modules \|\n(?:\|.*\n)+", re.MULTILINE)
ENTRY = re.compile(r"^## (?=\d{4}-\d{2}-\d{2} |\[)", re.MULTILINE)


def without_history(page: str, text: str) -> str:
    """Drop the entries of a page that keep the names of their time."""
    introduction, *entries = ENTRY.split(text)
    if page == "decisions.md":
        entries = [entry for entry in entries if entry >= KEEPS_OLD_NAMES_BEFORE]
    if page == "CHANGELOG.md":
        entries = [entry for entry in entries if entry.startswith("[Unreleased]")]
    return "\n".join([introduction, *entries])


def code_in(text: str) -> list[str]:
    """List what stands in fenced blocks and in backticks."""
    return FENCED.findall(text) + BACKTICKED.findall(FENCED.sub("", text))


def named_in(text: str) -> set[str]:
    """Find the modules, attributes and paths that a page names."""
    code = "\n".join(code_in(text))
    return set(DOTTED.findall(code)) | {path.rstrip(".") for path in SLASHED.findall(code)}


def listed_in_tables(text: str) -> set[str]:
    """Find the modules that tables list beside their package.

    In tables whose first column is headed "package" and whose last is headed "modules", plain names
    of the last column are modules of the package that begins their row.
    """
    found = set()
    for table in TABLE_OF_PACKAGES.findall(text):
        for package, modules in re.findall(r"^\| `([\w.]+)` \|.*?([^|]*)\|$", table, re.MULTILINE):
            found |= {f"{package}.{name}" for name in re.findall(r"`(\w+)`", modules)}
    return found


def packages_named_twice(text: str) -> list[str]:
    """Find the packages that have more than one row in a page's tables of packages."""
    rows = Counter(
        package
        for table in TABLE_OF_PACKAGES.findall(text)
        for package in re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    )
    return [package for package, count in rows.items() if count > 1]


@cache
def names_defined_in(source: Path) -> frozenset[str]:
    """Collect what a module or its classes define, import or assign."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


def exists(name: str, root: Path = ROOT) -> bool:
    """Say whether a dotted name or a path names something in this repository."""
    if "/" in name:
        return any(root.glob(name.rstrip("/")))
    place, parts = root, name.split(".")
    for i, part in enumerate(parts):
        if (place / part).is_dir():
            place = place / part
            continue
        source = place / f"{part}.py"
        attributes = parts[i + 1 :]
        if not source.is_file():  # then it is something that the package itself offers
            source, attributes = place / "__init__.py", parts[i:]
        return source.is_file() and names_defined_in(source).issuperset(attributes)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_exists(page):
    text = without_history(page.name, page.read_text(encoding="utf-8"))
    named = named_in(text) | listed_in_tables(text)
    assert sorted(name for name in named if not exists(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_name_no_package_twice(page):
    assert packages_named_twice(page.read_text(encoding="utf-8")) == []


def test_a_package_with_two_rows_is_found():
    rows = "| `engine` | a | `core` |\n| `loaders` | b | `load` |\n| `engine` | c | `config` |\n"
    assert packages_named_twice(f"| package | x | modules |\n|---|---|---|\n{rows}") == ["engine"]


def test_pages_name_something():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert len(named_in(text)) > 20
    assert len(listed_in_tables(text)) > 20


@pytest.mark.parametrize(
    "name",
    [
        "engine",
        "engine.core",
        "engine.core.Engine",
        "engine.core.Engine.step",
        "loaders.repository.hub.HubAccess",
        "service/api/",
        "benchmarks/results/*.json",
        "scripts/test",
    ],
)
def test_what_exists_is_found(name):
    assert exists(name)


@pytest.mark.parametrize(
    "name",
    ["engine.kernel", "engine.core.Motor", "engine.core.Engine.leap", "loaders.hub", "scripts/fly"],
)
def test_what_does_not_exist_is_not_found(name):
    assert not exists(name)


def test_names_are_read_from_code_only():
    text = (
        "The engine.gone of `engine.core.Engine`\n```\nscripts/test --all  # engine/core.py\n```\n"
    )
    assert named_in(text) == {"engine.core.Engine", "scripts/test", "engine/core.py"}


def test_addresses_and_other_paths_are_not_taken_for_ours():
    text = "`http://host/docs/x.html` `/service/x` `owner/engine/x` `./tests/x` `the engine.`"
    assert named_in(text) == set()


def test_old_entries_are_left_out():
    decisions = "Top\n\n## 2026-11-28 · New\n`new`\n\n## 2026-11-27 · Old\n`old`\n"
    assert "`old`" not in without_history("decisions.md", decisions)
    assert "`new`" in without_history("decisions.md", decisions)
    changes = "Top\n\n## [Unreleased]\n`new`\n\n## [0.1.0]\n`old`\n"
    assert "`old`" not in without_history("CHANGELOG.md", changes)
    assert "`old`" in without_history("README.md", changes)
