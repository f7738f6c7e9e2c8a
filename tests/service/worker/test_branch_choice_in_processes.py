"""`tetrad serve REPO` with real engines: which branch is served, why, and for how long."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from tests import models
from tests.dequantize import dequantized_model
from tests.greedy import may_say
from tests.service.fakes import wait_until
from tests.service.real_server import LOAD_LIMIT_S, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models import TinyRepositories
    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

PROMPT, NUM_TOKENS = "The capital of France is", 12
SMALL = {"max_model_len": 128, "kv_cache_size": 2**20}
BEST, NAMED = "gptq-8bit-128g-actorder_True", "gptq-4bit-64g-actorder_True"


def revision(server: RealServer, name: str) -> str:
    return str(server.model(name)["provenance"]["revision"])


def choices(server: RealServer) -> dict[str, list[dict[str, str]]]:
    """The lines that tell what was chosen, by the name that clients use."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in server.lines("variant_chosen"):
        found.setdefault(line["model"], []).append(line)
    return found


def check_answer(server: RealServer, name: str, variant: str, cache_dir: Path) -> None:
    snapshot = open_snapshot(parse_spec(variant), cache_dir=cache_dir, local_files_only=True)
    answer = server.complete(name, PROMPT, NUM_TOKENS)
    expected = dequantized_model(snapshot.folder)
    assert may_say(expected, models.tiny_tokenizer(), PROMPT, answer, NUM_TOKENS)


def test_an_open_branch_is_chosen_told_and_kept(tmp_path: Path, tiny_repo: TinyRepositories):
    """Beside one that is named, which is obeyed."""
    repo, cache_dir = tiny_repo.gptq_repo, tiny_repo.cache_dir
    own = {"cache_dir": str(cache_dir), **SMALL}
    with serving(tmp_path, repo, f"named={repo}:{NAMED}", **own) as server:
        assert (revision(server, repo), revision(server, "named")) == (BEST, NAMED)
        assert server.model(repo)["degraded"] is None
        ((line,),) = choices(server).values()
        assert (line["model"], line["variant"]) == (repo, f"{repo}:{BEST}")
        assert "best expected quality" in line["reason"]
        check_answer(server, repo, f"{repo}:{BEST}", cache_dir)
        check_answer(server, "named", f"{repo}:{NAMED}", cache_dir)

        killed = server.engine_pid(repo)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.engine_pid(repo) != killed, LOAD_LIMIT_S)
        assert revision(server, repo) == BEST
        assert list(choices(server)) == [repo]
        assert len(choices(server)[repo]) == 1
        assert server.model(repo)["degraded"] is None
        check_answer(server, repo, f"{repo}:{BEST}", cache_dir)


def test_what_counts_most_decides(tmp_path: Path, tiny_repo: TinyRepositories):
    repo = tiny_repo.gptq_repo
    own = {"cache_dir": str(tiny_repo.cache_dir), "flags": ("--prefer", "memory"), **SMALL}
    with serving(tmp_path, repo, **own) as server:
        ((line,),) = choices(server).values()
        assert "least memory" in line["reason"]
        assert line["variant"] == f"{repo}:{revision(server, repo)}" != f"{repo}:{BEST}"
        check_answer(server, repo, line["variant"], tiny_repo.cache_dir)
