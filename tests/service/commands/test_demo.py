"""`tetrad demo`, and how other commands treat the demo's repositories."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import loaders.demo
from loaders.demo import DEMO_REPO, named, places
from loaders.demo.branches import BRANCHES, default_branch
from loaders.demo.repository import commit_branch
from service.cli import app
from service.doctor.needs import check_variant, read_needs
from service.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = default_branch()


def lay_down(cache_dir: Path, branches: Any) -> None:
    """Put a small file where each branch would be built."""
    for branch in branches:
        folder = cache_dir / "files" / branch.name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(str(branch))
        places.mark_as_built(cache_dir, branch.repo)
        commit_branch(cache_dir, branch.repo, branch.name, folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Build in no time, and note which branches were asked for."""
    monkeypatch.setenv("TETRAD_CACHE_DIR", str(tmp_path / "cache"))
    asked: list[list[str]] = []

    def build(cache_dir: Path, branches: Any, *, on_progress: Any, on_percent_done: Any) -> Any:
        asked.append([branch.name for branch in branches])
        on_progress("rounding it")
        on_percent_done(50.0)
        lay_down(cache_dir, branches)
        return loaders.demo.find_demo(cache_dir, branches)

    monkeypatch.setattr(loaders.demo, "build_demo", build)
    monkeypatch.setattr(named, "build_demo", build)
    return asked


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_only_the_default_branch_is_built_and_all_are_listed(asked):
    done = run("demo")
    assert asked == [[DEFAULT.name]]
    lines = [line for line in done.stdout.splitlines() if "tetrad/" in line]
    assert len(lines) == len(BRANCHES)
    waiting = [line for line in lines if "built when it is named, or by --all" in line]
    assert len(waiting) == len(BRANCHES) - 1
    assert "(served by default)" in next(line for line in lines if DEFAULT.name in line)


def test_all_builds_every_branch(asked):
    done = run("demo", "--all")
    assert asked == [[branch.name for branch in BRANCHES]]
    assert "built when it is named" not in done.stdout


def test_each_step_is_one_line_where_there_is_no_terminal(asked):
    done = run("demo")
    assert done.stderr == "tetrad: rounding it\n"


def test_download_has_the_named_branch_built(asked, tmp_path):
    for _ in range(2):
        done = run("download", f"{DEMO_REPO}:main", "--cache-dir", str(tmp_path / "there"))
        assert done.exit_code == 0, done.stderr
        assert str(tmp_path / "there") in done.stdout
    assert asked == [["main"]]


def test_commands_know_the_demo_by_its_name(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("service.commands.repository_options.set_up_logs", lambda _: None)
    monkeypatch.chdir(tmp_path)
    listed = run("variants", "demo", "--offline", "--json")
    assert listed.exit_code == 0, listed.stderr
    assert json.loads(listed.stdout)["repo"] == DEMO_REPO
    planned = run("plan", "demo", "--gpu", "CARD:8GB", "--offline", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert asked == []
    fetched = run("download", "demo")
    assert fetched.exit_code == 0, fetched.stderr
    assert asked == [[DEFAULT.name]]
    (tmp_path / "demo").mkdir()
    assert "is on this machine already" in run("download", "demo").stderr


def test_download_of_a_branch_that_there_is_not_says_which_there_are(asked):
    done = run("download", f"{DEMO_REPO}:nope")
    assert done.exit_code == 2
    assert "the demo has main, gptq-4bit-32g" in done.stderr
    assert asked == []


def test_mirror_says_how_a_branch_gets_into_a_folder(asked, tmp_path):
    done = run("mirror", DEMO_REPO, str(tmp_path / "m"))
    assert done.exit_code == 2
    assert f"tetrad download {DEMO_REPO}:BRANCH --cache-dir" in done.stderr
    assert asked == []


def test_a_doctor_builds_nothing_and_says_that_serving_does(asked, tmp_path):
    settings = WorkerSettings(variant=str(DEFAULT), cache_dir=tmp_path / "cache", device="cpu")
    (read,) = read_needs([settings])
    assert "is built when it is served" in check_variant(read).found
    assert asked == []
