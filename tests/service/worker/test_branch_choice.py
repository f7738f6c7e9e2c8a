"""What is loaded for a name: what it names, or what a plan picks for this machine."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from loaders.cache import repository_folder
from loaders.catalogue.find import find_variants
from loaders.demo.repository import commit_branch, find_snapshot
from loaders.errors import BackendError, NotEnoughMemoryError, RepositoryNotFoundError
from loaders.records import Records
from loaders.repository.spec import parse_spec
from service.settings import WorkerSettings
from service.worker import branch_choice as choice
from service.worker.branch_choice import choose_variant, devices_of, one_device
from service.worker_protocol.load_attempt import LoadAttempt, LoadRequest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models import TinyRepositories


def chosen(repo: TinyRepositories, name: str, *excluded: str, **settings: object) -> LoadAttempt:
    return choose_variant(
        parse_spec(name),
        WorkerSettings(**{"cache_dir": repo.cache_dir, **settings}),
        LoadRequest(excluded_variants=excluded),
        cache_dir=repo.cache_dir,
        local_files_only=True,
        device="cpu",
    )


def test_a_branch_that_is_named_is_obeyed(tiny_repo: TinyRepositories):
    name = f"{tiny_repo.gptq_repo}:gptq-4bit-64g-actorder_True"
    assert chosen(tiny_repo, name) == LoadAttempt(variant=name)


def test_a_repository_with_one_branch_leaves_nothing_to_choose(tiny_repo: TinyRepositories):
    assert chosen(tiny_repo, tiny_repo.awq_repo) == LoadAttempt(
        variant=f"{tiny_repo.awq_repo}:main"
    )


def test_the_only_branch_in_a_cache_is_taken_whatever_its_name(tiny_repo, tmp_path):
    name = "gptq-8bit-128g-actorder_True"
    snapshot = find_snapshot(tiny_repo.cache_dir, tiny_repo.gptq_repo, name)
    folder = tmp_path / "files"
    shutil.copytree(snapshot, folder)
    commit_branch(tmp_path, tiny_repo.gptq_repo, name, folder)
    only = SimpleNamespace(cache_dir=tmp_path)
    assert chosen(only, tiny_repo.gptq_repo).variant == f"{tiny_repo.gptq_repo}:{name}"


def test_an_open_branch_is_planned_and_the_reason_told_in_one_line(tiny_repo: TinyRepositories):
    attempt = chosen(tiny_repo, tiny_repo.gptq_repo)
    assert attempt.variant == f"{tiny_repo.gptq_repo}:gptq-8bit-128g-actorder_True"
    assert "best expected quality" in attempt.reason
    assert "\n" not in attempt.reason


def test_what_counts_most_is_a_setting(tiny_repo: TinyRepositories):
    attempt = chosen(tiny_repo, tiny_repo.gptq_repo, prefer="memory")
    assert attempt.variant != chosen(tiny_repo, tiny_repo.gptq_repo).variant
    assert "least memory" in attempt.reason


def test_what_failed_before_is_not_chosen_again(tiny_repo: TinyRepositories):
    first = chosen(tiny_repo, tiny_repo.gptq_repo).variant
    second = chosen(tiny_repo, tiny_repo.gptq_repo, first).variant
    assert second not in (first, tiny_repo.gptq_repo)


def test_where_every_branch_failed_that_is_said(tiny_repo: TinyRepositories):
    with pytest.raises(NotEnoughMemoryError, match="nothing that can be loaded"):
        chosen(tiny_repo, tiny_repo.gptq_repo, *tiny_repo.specs())


def test_where_nothing_fits_the_arithmetic_of_each_is_told(tiny_repo, monkeypatch):
    monkeypatch.setattr(choice, "free_device_bytes", lambda place: 100_000_000)
    with pytest.raises(NotEnoughMemoryError, match=r"nothing fits.*main: lacks \d\.\d\d GB"):
        chosen(tiny_repo, tiny_repo.gptq_repo)


def test_a_name_that_is_no_repository_is_said(tiny_repo: TinyRepositories):
    with pytest.raises(RepositoryNotFoundError, match="nobody/nothing is not in the cache"):
        chosen(tiny_repo, "nobody/nothing")


def test_perplexity_that_was_measured_decides(tiny_repo: TinyRepositories, tmp_path: Path):
    variants = find_variants(
        parse_spec(tiny_repo.gptq_repo), cache_dir=tiny_repo.cache_dir, local_files_only=True
    )
    for variant in variants:
        value = 9.0 if variant.revision == "main" else 10.0
        Records(tmp_path).write(variant.commit, "perplexity", value)
    attempt = chosen(tiny_repo, tiny_repo.gptq_repo, cache_dir=tmp_path)
    assert attempt.variant == f"{tiny_repo.gptq_repo}:main"
    assert "perplexity 9.00" in attempt.reason


def test_two_names_of_one_commit_fail_together(tiny_repo, tmp_path):
    for name in ("main", "gptq-8bit-128g-actorder_True"):
        folder = tmp_path / name
        shutil.copytree(find_snapshot(tiny_repo.cache_dir, tiny_repo.gptq_repo, name), folder)
        commit_branch(tmp_path, tiny_repo.gptq_repo, name, folder)
    refs = repository_folder(tmp_path, tiny_repo.gptq_repo) / "refs"
    (refs / "v1").write_text((refs / "gptq-8bit-128g-actorder_True").read_text())
    both = SimpleNamespace(cache_dir=tmp_path)
    first = chosen(both, tiny_repo.gptq_repo).variant
    assert chosen(both, tiny_repo.gptq_repo, first).variant == f"{tiny_repo.gptq_repo}:main"


def test_strict_takes_no_shorter_context(tiny_repo, monkeypatch):
    monkeypatch.setattr(choice, "free_device_bytes", lambda place: 470_000_000)
    settings = {"users": 64}
    assert "this one reaches" in chosen(tiny_repo, tiny_repo.gptq_repo, **settings).reason
    with pytest.raises(NotEnoughMemoryError, match="nothing fits"):
        chosen(tiny_repo, tiny_repo.gptq_repo, strict=True, **settings)


def test_smaller_keys_and_values_make_room(tiny_repo, monkeypatch):
    monkeypatch.setattr(choice, "free_device_bytes", lambda place: 600_000_000)
    wide = chosen(tiny_repo, tiny_repo.gptq_repo, users=64)
    narrow = chosen(tiny_repo, tiny_repo.gptq_repo, users=64, kv_cache_dtype="fp8")
    assert "nothing fits" in wide.reason
    assert "nothing fits" not in narrow.reason


def test_what_fits_nowhere_whole_is_shared_with_the_cpu_if_asked(tiny_repo, monkeypatch):
    monkeypatch.setattr(choice, "free_device_bytes", lambda place: 100_000_000)
    attempt = chosen(tiny_repo, tiny_repo.gptq_repo, cpu_offload=True)
    assert "a part stays on the CPU" in attempt.reason


def test_the_cpu_counts_what_is_free_of_it():
    devices = devices_of("cpu")
    assert (devices.kind, devices.count, devices.lasting_share(0.9)) == ("cpu", 1, 1.0)
    assert 0 < devices.memory_bytes < 10**13


def test_of_several_gpus_the_one_with_the_most_free_memory_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    free = {0: 5, 1: 9, 2: 7}
    monkeypatch.setattr(choice, "free_device_bytes", lambda place: free[place.index])
    assert str(one_device("auto")) == "cuda:1"
    assert str(one_device("cuda:2")) == "cuda:2"


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (1, "cuda:0")])
def test_with_one_gpu_or_none_there_is_nothing_to_choose(monkeypatch, num_gpus, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert str(one_device("auto")) == device


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(BackendError, match="cuda:99"):
        one_device("cuda:99")
