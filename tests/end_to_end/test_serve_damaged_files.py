"""`tetrad serve` of files that are not what they were: it says which, and serves none of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loaders.repository.cache_layout import CachedRepository
from tests.service.real_server import serving

if TYPE_CHECKING:
    from tests.models import TinyRepositories

pytestmark = pytest.mark.slow

SMALL = {"max_model_len": 128, "kv_cache_size": 2**20, "backend": "reference"}
FAILED = 1  # exit code where no variant can serve


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)


def test_damaged_weights_are_named_and_the_server_ends(tmp_path: Path, tiny_repo: TinyRepositories):
    """It is not tried again either: no other attempt would find other bytes."""
    cache = Path(shutil.copytree(tiny_repo.cache_dir, tmp_path / "cache", symlinks=True))
    variant, repository = tiny_repo.specs()[0], CachedRepository(cache, tiny_repo.gptq_repo)
    commit = str(repository.commit_of(variant.rpartition(":")[2]))
    damage(repository.snapshot(commit) / "model.safetensors")
    with serving(tmp_path / "server", variant, cache_dir=str(cache), **SMALL) as server:
        assert server.popen.wait(20) == FAILED
        end = server.line("variant_failed")
        assert "model.safetensors is damaged: sha256 " in end["reason"]
        assert f"`tetrad download {variant} --verify --cache-dir {cache}`" in end["reason"]
        assert [server.lines(event) for event in ("ready", "engine_restarting")] == [[], []]
