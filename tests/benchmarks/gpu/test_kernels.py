"""Cases that go wrong are told, and leave the others to theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import kernels
from benchmarks.gpu.context import CheckFailedError, Context
from benchmarks.gpu.kernel_cases import Case, case_groups

if TYPE_CHECKING:
    from pathlib import Path


def refuse() -> torch.Tensor:
    raise RuntimeError("no such instruction")


def lose_the_device() -> torch.Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def case(name: str, found: object) -> Case:
    give = found if callable(found) else lambda: torch.tensor(found)
    return Case(name, give, lambda: torch.tensor([1.0, 2.0]), 0.01)


def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *cases: Case
) -> tuple[dict[str, object], str]:
    """Run the part on these cases; what it found, and what it says is wrong."""
    monkeypatch.setattr(kernels, "case_groups", lambda _: [lambda: iter(cases)])
    context = Context(tmp_path / "kernels.json", is_dry=True)
    with pytest.raises(CheckFailedError) as raised:
        kernels.run(context)
    return json.loads(context.findings_file.read_text()), str(raised.value)


def test_what_is_wrong_is_named_and_the_rest_is_compared(tmp_path, monkeypatch):
    found, said = compare(
        tmp_path,
        monkeypatch,
        case("off", [1.0, 2.1]),
        case("unwritten", [1.0, float("nan")]),
        case("refused", refuse),
        case("right", [1.0, 2.001]),
    )
    assert said == "wrong: off, unwritten, refused"
    assert found["num_cases"] == 4
    assert found["worst"]["name"] == "right"
    assert found["failures"][2]["reason"] == "RuntimeError: no such instruction"


def test_nothing_more_is_asked_of_a_device_that_is_lost(tmp_path, monkeypatch):
    cases = case("fatal", lose_the_device), case("never", [1.0, 2.0])
    found, said = compare(tmp_path, monkeypatch, *cases)
    assert "lost after fatal" in said
    assert (found["num_cases"], found["running"]) == (1, "fatal")


def test_the_findings_of_all_shares_are_put_together(tmp_path):
    passed = {"name": "a", "error": 0.001, "allowed": 0.01}
    done = {"num_cases": 3, "failures": [], "worst": passed, "is_done": True}
    ended = {"num_cases": 2, "failures": [{"name": "b"}], "running": "c"}
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, share in zip(files, (done, ended), strict=False):
        file.write_text(json.dumps(share))
    found = kernels._merged(files)
    assert (found["num_cases"], found["num_failures"]) == (5, 1)
    assert found["unfinished"] == ["c", "the start"]
    assert found["worst"] == passed


def test_shares_take_every_group_once(tmp_path):
    context = Context(tmp_path / "kernels.json", is_dry=False)
    groups = case_groups(context)
    assert sum(len(groups[number::8]) for number in range(8)) == len(groups) > 50
