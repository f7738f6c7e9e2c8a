"""Imports go one way.

The contracts in pyproject.toml would break where they should, and no module imports itself back,
neither at run time nor for typing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "engine", "loaders", "native")


def cycle_of(graph: grimp.ImportGraph) -> list[str] | None:
    """Return a cycle of modules, None where there is none.

    That a package's `__init__` imports the modules that it hands on, and they it, is no cycle of
    modules: only imports of definitions count, and those are of the modules themselves.
    """
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@pytest.mark.parametrize("with_types", [False, True])
def test_no_module_imports_itself_back(with_types):
    graph = grimp.build_graph(
        *PACKAGES, exclude_type_checking_imports=not with_types, cache_dir=None
    )
    assert cycle_of(graph) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("loaders/checkpoint/files.py", "import loaders.model.opened", "rooms of loaders"),
        ("engine/scheduling/prefix.py", "import engine.execution.rope", "rooms of engine"),
        ("service/text/prompt.py", "import service.api.context", "rooms of service"),
        ("engine/errors.py", "import loaders.errors", "strangers to each other"),
        ("native/sources.py", "import loaders.errors", "strangers to each other"),
        ("engine/scheduling/prefix.py", "import torch", "policy is free of tensors"),
        ("loaders/cache.py", "import huggingface_hub", "only loaders.repository.hub talks to"),
        ("engine/errors.py", "import pydantic", "HTTP stays in the service"),
        ("service/team/keys.py", "import torch", "the API's process computes nothing"),
    ],
)
def test_an_import_against_the_grain_breaks_its_contract(tmp_path, module, line, contract):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [one for one in done.stdout.splitlines() if one.endswith(" BROKEN")]
    assert any(contract in one for one in broken), done.stdout
