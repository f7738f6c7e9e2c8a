"""`tetrad download` and `tetrad mirror` as a user runs them, against a local hub."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loaders.demo.repository import find_snapshot
from tests.hub_server import Fault, HubRepository, running_hub
from tests.models import CARD_BRANCHES
from tests.service.fakes import wait_until
from tests.watching import partial_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.hub_server import Hub

pytestmark = pytest.mark.slow

REPO = "someone/model"
ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]
FILES = {"config.json": b"{}", "model.safetensors": bytes(3_000_000)}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        running.repositories[REPO] = HubRepository({"main": FILES, "b": FILES})
        yield running


@pytest.fixture
def tetrad(hub, tmp_path):
    """Run the command; `start` begins it and leaves it running."""
    environment = {
        "PATH": os.environ["PATH"], "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"),
        "COLUMNS": "150", "TERM": "xterm", "TETRAD_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip

    def start(*arguments, **options):
        return subprocess.Popen(
            [*COMMAND, *arguments], env=environment, cwd=ROOT, text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )  # fmt: skip

    def run(*arguments):
        process = start(*arguments)
        run.out, run.told = process.communicate(timeout=60)
        assert "Traceback" not in run.told
        return process.returncode

    run.start = start
    return run


def test_a_download_tells_in_lines_where_there_is_no_terminal(tetrad, tmp_path):
    assert tetrad("download", REPO) == 0
    assert "\r" not in tetrad.told
    assert re.search(rf"^tetrad: {REPO}: 3\.0 of 3\.0 MB, [\d.]+ MB/s$", tetrad.told, re.MULTILINE)
    assert f"{REPO} is at commit " in tetrad.out
    assert str(tmp_path / "cache" / "models--someone--model") in tetrad.out
    assert tetrad("download", REPO) == 0
    assert tetrad.told == ""


def test_a_terminal_gets_a_bar_with_total_rate_and_time(hub, tetrad):
    hub.pause_s = 0.05
    ours, theirs = pty.openpty()
    process = tetrad.start("download", REPO, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(rf"{REPO} .*[\d.]+/3\.0 MB [\d.]+ MB/s \d:\d\d:\d\d", text)


def test_what_goes_wrong_is_one_line_and_2(hub, tetrad, tmp_path):
    for arguments, told in (
        (("download", f"{REPO}:nope"), "it has b, main"),
        (("download", "no repository"), "is not a repository's name"),
        (("download", f"{REPO}:../../etc"), "names no usable revision"),
        (("download", str(tmp_path)), "is on this machine already"),
        (("mirror", REPO), "use `tetrad mirror REPO FOLDER`"),
        (("mirror", REPO, str(tmp_path), "--branches", "auto,b"), "say auto alone"),
        (("mirror", REPO, str(tmp_path), "--branches", "auto"), "name what to mirror"),
        (("mirror", "--check", str(tmp_path)), "is no mirror"),
    ):
        assert tetrad(*arguments) == 2, tetrad.told
        assert tetrad.told.startswith("tetrad: ")
        assert tetrad.told.count("\n") == 1
        assert told in tetrad.told


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(hub, tetrad, tmp_path):
    hub.pause_s = 0.1
    with tetrad.start("download", REPO) as process:
        wait_until(lambda: partial_bytes(tmp_path) > 200_000, limit_s=30)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.splitlines()[-1].endswith("goes on from there")
    assert "Traceback" not in told
    kept = partial_bytes(tmp_path)
    hub.pause_s = 0.0
    hub.asked.clear()
    assert tetrad("download", REPO) == 0
    assert [r.range[0] for r in hub.asked if r.range] == [kept]


def test_verify_fetches_anew_what_is_damaged(hub, tetrad, tmp_path):
    assert tetrad("download", REPO) == 0
    (link,) = tmp_path.rglob("model.safetensors")
    link.resolve().write_bytes(b"\1" * 3_000_000)
    assert tetrad("download", REPO, "--verify") == 0
    assert "damaged: model.safetensors: expected 3000000 bytes" in tetrad.told
    assert link.read_bytes() == FILES["model.safetensors"]
    assert tetrad("download", REPO, "--verify") == 0
    assert "damaged" not in tetrad.told


def test_a_private_repository_takes_a_token_that_nobody_is_shown(hub, tetrad):
    hub.repositories[REPO] = HubRepository({"main": FILES}, token="hf_secret")
    assert tetrad("download", REPO) == 2
    assert "give a token" in tetrad.told
    assert tetrad("download", REPO, "--token", "hf_secret") == 0
    assert "hf_secret" not in tetrad.told + tetrad.out


def test_a_mirror_is_made_and_checked(hub, tetrad, tmp_path):
    hub.faults = [Fault("model.safetensors", status=503, retry_after_s=0)]
    assert tetrad("mirror", REPO, str(tmp_path / "m"), "--branches", "main, b") == 0
    assert f"{REPO}:b is at commit" in tetrad.out
    serve = f"tetrad serve {REPO}:b --cache-dir {tmp_path / 'm'} --local-files-only"
    assert serve in tetrad.out
    assert tetrad("mirror", "--check", str(tmp_path / "m")) == 0
    assert tetrad.out.count("is whole") == 2
    next((tmp_path / "m").rglob("model.safetensors")).resolve().write_bytes(b"")
    assert tetrad("mirror", "--check", str(tmp_path / "m")) == 2
    assert "model.safetensors: expected 3000000 bytes" in tetrad.told


def test_a_mirror_may_leave_the_choice_to_a_plan(hub, tetrad, tiny_repo, tmp_path):
    hub.repositories[tiny_repo.gptq_repo] = HubRepository(
        {
            branch.name: {
                path.name: path.read_bytes()
                for path in find_snapshot(
                    tiny_repo.cache_dir, tiny_repo.gptq_repo, branch.name
                ).iterdir()
            }
            for branch in CARD_BRANCHES
        }
    )
    arguments = ("mirror", tiny_repo.gptq_repo, str(tmp_path / "mirror"), "--branches", "auto")
    assert tetrad(*arguments, "--gpu", "A10G") == 0, tetrad.told
    chosen = f"{tiny_repo.gptq_repo}:gptq-8bit-128g-actorder_True"
    assert f"tetrad: {chosen}: best expected quality" in tetrad.told
    assert f"{chosen} is at commit" in tetrad.out
    assert tetrad("mirror", "--check", str(tmp_path / "mirror")) == 0
