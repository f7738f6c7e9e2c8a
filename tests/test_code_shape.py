"""The code stays in pieces that one can take in: nothing long, and few modules outside of rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_CLASS_LINES = 250
MAX_FUNCTION_LINES = 60


def num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize(
    ("package", "most"), [("loaders", 5), ("engine", 10), ("service", 12), ("native", 12)]
)
def test_few_modules_lie_outside_of_rooms(package, most):
    loose = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert len(loose) <= most, sorted(loose)


@pytest.mark.parametrize("package", ["loaders", "engine", "native", "service"])
def test_no_class_and_no_function_is_long(package):
    found: list[str] = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                limit = MAX_CLASS_LINES
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                limit = MAX_FUNCTION_LINES
            else:
                continue
            if num_lines(node) > limit:
                found.append(f"{path.relative_to(ROOT)}: {node.name} has {num_lines(node)} lines")
    assert found == []
