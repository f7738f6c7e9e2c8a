"""Every benchmark starts: what it imports is where it looks for it, and it builds what it uses.

In a process of their own, so that what they set up while they are imported stays there.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Measuring needs them, serving does not, so they may be absent.
OPTIONAL = {"httpx2", "psutil"}
IMPORT_ALL = """
import importlib, sys, traceback
failed = False
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in sys.argv[1].split(","):
            print(f"skipped {name}: {error}")
            continue
        failed = True
        traceback.print_exc()
    except Exception:
        failed = True
        traceback.print_exc()
sys.exit(failed)
"""


def test_every_benchmark_can_be_imported() -> None:
    paths = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py")]
    names = [".".join(path.with_suffix("").parts) for path in paths if path.stem != "__main__"]
    assert "benchmarks.verification" in names
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(sorted(OPTIONAL)), *sorted(names)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_no_benchmark_builds_branches_of_the_demo_that_it_does_not_use() -> None:
    """All of them take most of a minute; whoever builds some names them."""
    calls = [
        (path.name, len(call.args))
        for path in (ROOT / "benchmarks").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "build_demo"
    ]
    assert {name for name, _ in calls} >= {"neighbour.py", "sameness.py", "soak.py"}
    assert [name for name, num_arguments in calls if num_arguments < 2] == []
