"""Downloading from a source that fails as a test wishes; no hub, no network."""

from __future__ import annotations

import errno
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.errors import CacheError, CheckpointError, HubError, UnsafeCheckpointError
from loaders.repository.cache_layout import CachedRepository
from loaders.repository.download import (
    Body,
    RetryPolicy,
    TransferError,
    download_files,
    needed_files,
)
from loaders.repository.download_progress import DownloadProgress, ProgressMeter
from loaders.repository.manifest import find_damage
from loaders.repository.protocol import RepositoryFile
from loaders.repository.spec import VariantSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "c" * 40
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "empty.json": b""}
QUICK = RetryPolicy(max_tries=3, first_wait_s=0.001, longest_wait_s=0.002)


def listed(path: str, content: bytes) -> RepositoryFile:
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else None
    return RepositoryFile(path, len(content), sha256, git_id)


@dataclass
class FakeSource:
    """Gives files in pieces of 100 bytes, each answer shaped by the next of `faults`."""

    files: dict[str, bytes]
    knows_ranges: bool = True
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)

    @contextmanager
    def open(self, path: str, start: int) -> Iterator[Body]:
        self.asked.append((path, start))
        fault = self.faults.pop(0) if self.faults and len(self.files[path]) > 100 else ""
        if fault == "busy":
            raise TransferError("status 503", retry_after_s=0.001)
        if fault == "closed":
            raise TransferError("status 429", retry_after_s=3600.0)
        begin = start if self.knows_ranges else 0
        if fault == "elsewhere":
            begin = 100
        yield Body(begin, self._pieces(self.files[path][begin:], fault))

    def _pieces(self, content: bytes, fault: str) -> Iterator[bytes]:
        if fault == "damage":
            content = b"?" + content[1:]
        if fault == "long":
            content += b"more than was promised"
        for at in range(0, len(content), 100):
            if fault in ("cut", "end", "full") and at == 500:
                break
            yield content[at : at + 100]
        if fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fault == "cut":
            raise TransferError("connection broken")


@pytest.fixture
def cached(tmp_path) -> CachedRepository:
    return CachedRepository(tmp_path / "cache", "a/b")


def run(source, cached, files=FILES, **options):
    listing = [listed(path, content) for path, content in files.items()]
    told: list[DownloadProgress] = []
    options = {"retry_policy": QUICK, "on_progress": told.append, **options}
    checked = download_files(listing, source, cached, COMMIT, **options)
    cached.publish(COMMIT, listing, checked, "http://hub")
    run.told = told
    return cached.snapshot(COMMIT)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def partials(cached):
    return [path for path in cached.folder.rglob("*") if path.name.endswith(".partial")]


def test_files_come_whole_and_lie_as_the_hubs_client_lays_them(cached):
    folder = run(FakeSource(FILES), cached)
    assert contents(folder) == FILES
    link = folder / "model.safetensors"
    assert str(link.readlink()) == f"../../blobs/{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert partials(cached) == []
    assert cached.is_whole(COMMIT, FILES)
    assert run.told[-1].num_bytes_done == run.told[-1].num_bytes_total == len(WEIGHTS) + 2


def test_what_is_there_is_not_fetched_again(cached):
    run(FakeSource(FILES), cached)
    again = FakeSource(FILES)
    assert contents(run(again, cached)) == FILES
    assert again.asked == []


def test_a_partial_file_is_gone_on_with(cached):
    weights = listed("model.safetensors", WEIGHTS)
    cached.partial(weights).parent.mkdir(parents=True)
    cached.partial(weights).write_bytes(WEIGHTS[:777])
    source = FakeSource(FILES)
    assert contents(run(source, cached)) == FILES
    assert ("model.safetensors", 777) in source.asked


def test_a_partial_file_that_is_whole_only_needs_its_name(cached):
    weights = listed("model.safetensors", WEIGHTS)
    cached.partial(weights).parent.mkdir(parents=True)
    cached.partial(weights).write_bytes(WEIGHTS)
    source = FakeSource(FILES)
    assert contents(run(source, cached)) == FILES
    assert "model.safetensors" not in {path for path, _ in source.asked}


@pytest.mark.parametrize("rubbish", [b"x" * 777, WEIGHTS + b"x", b"x" * len(WEIGHTS)])
def test_a_partial_file_that_is_rubbish_costs_one_more_fetch(cached, rubbish):
    weights = listed("model.safetensors", WEIGHTS)
    cached.partial(weights).parent.mkdir(parents=True)
    cached.partial(weights).write_bytes(rubbish)
    assert contents(run(FakeSource(FILES), cached)) == FILES


@given(
    knows_ranges=st.booleans(),
    faults=st.lists(st.sampled_from(["cut", "end", "busy", "long", "elsewhere", ""]), max_size=2),
)
def test_whatever_breaks_twice_the_files_are_right(tmp_path_factory, knows_ranges, faults):
    cached = CachedRepository(tmp_path_factory.mktemp("cache"), "a/b")
    source = FakeSource(FILES, knows_ranges=knows_ranges, faults=faults)
    assert contents(run(source, cached)) == FILES


def test_a_cut_transfer_goes_on_where_it_broke(cached):
    source = FakeSource(FILES, faults=["cut", "cut", "cut", "cut", "cut"])
    assert contents(run(source, cached)) == FILES
    starts = [start for path, start in source.asked if path == "model.safetensors"]
    assert starts == [0, 500, 1000, 1500, 2000, 2500]


def test_a_source_without_ranges_that_always_breaks_is_given_up(cached):
    source = FakeSource(FILES, knows_ranges=False, faults=["cut"] * 20)
    with pytest.raises(HubError, match=r"model\.safetensors failed 3 times in a row"):
        run(source, cached)


def test_no_progress_is_given_up_and_what_came_is_kept(cached):
    source = FakeSource(FILES, faults=["cut"] + ["busy"] * 20)
    with pytest.raises(HubError, match="503"):
        run(source, cached)
    assert partials(cached)[0].read_bytes() == WEIGHTS[:500]
    assert not cached.snapshot(COMMIT).exists()
    source.faults.clear()
    assert contents(run(source, cached)) == FILES
    assert source.asked[-1] == ("model.safetensors", 500)


def test_a_wait_of_an_hour_is_told_rather_than_waited(cached):
    with pytest.raises(HubError, match="must wait 3600 s"):
        run(FakeSource(FILES, faults=["closed"]), cached)


def test_a_damaged_file_is_fetched_again_once_and_then_reported(cached):
    assert contents(run(FakeSource(FILES, faults=["damage"]), cached)) == FILES
    other = CachedRepository(cached.cache_dir / "other", "a/b")
    with pytest.raises(CheckpointError) as refused:
        run(FakeSource(FILES, faults=["damage"] * 2), other)
    message = str(refused.value)
    assert "model.safetensors" in message
    assert hashlib.sha256(WEIGHTS).hexdigest() in message
    assert hashlib.sha256(b"?" + WEIGHTS[1:]).hexdigest() in message
    assert partials(other) == []
    assert not other.blob(listed("model.safetensors", WEIGHTS)).exists()


def test_small_files_are_checked_by_gits_hash(cached):
    wrong = FakeSource({**FILES, "config.json": b"{]"})
    with pytest.raises(CheckpointError, match=r"config\.json.*git id"):
        run(wrong, cached)


def test_a_blob_of_another_program_is_checked_before_it_is_used(cached):
    weights, config = listed("model.safetensors", WEIGHTS), listed("config.json", b"{}")
    cached.blob(weights).parent.mkdir(parents=True)
    cached.blob(weights).write_bytes(b"?" + WEIGHTS[1:])
    cached.blob(config).write_bytes(b"{}")
    source = FakeSource(FILES)
    assert contents(run(source, cached)) == FILES
    assert {path for path, _ in source.asked} == {"model.safetensors"}


def test_the_same_content_under_two_names_is_fetched_once(cached):
    files = {"a.json": b"same", "b.json": b"same"}
    source = FakeSource(files)
    assert contents(run(source, cached, files)) == files
    assert len(source.asked) == 1


def test_a_disk_too_small_is_told_before_the_first_byte(cached):
    source = FakeSource(FILES)
    with pytest.raises(CacheError) as refused:
        run(source, cached, free=lambda _: 10_000)
    message = str(refused.value)
    assert f"{len(WEIGHTS) + 2} bytes" in message
    assert "10000 bytes free" in message
    assert str(cached.cache_dir) in message
    assert source.asked == []
    assert not cached.folder.exists()


def test_what_a_partial_file_holds_needs_no_more_space(cached):
    weights = listed("model.safetensors", WEIGHTS)
    cached.partial(weights).parent.mkdir(parents=True)
    cached.partial(weights).write_bytes(WEIGHTS[:10_000])
    assert contents(run(FakeSource(FILES), cached, free=lambda _: 1000)) == FILES


def test_a_disk_that_fills_keeps_what_came_and_names_nothing(cached):
    with pytest.raises(CacheError, match=r"is full; free some space.*goes on"):
        run(FakeSource(FILES, faults=["full"]), cached)
    assert not cached.snapshot(COMMIT).exists()
    assert not cached.blob(listed("model.safetensors", WEIGHTS)).exists()
    assert partials(cached)[0].read_bytes() == WEIGHTS[:500]
    assert contents(run(FakeSource(FILES), cached)) == FILES


def test_a_cache_that_cannot_be_written_says_so(cached):
    cached.cache_dir.parent.mkdir(exist_ok=True)
    cached.cache_dir.write_text("a file, not a folder")
    with pytest.raises(CacheError, match="cannot be used"):
        run(FakeSource(FILES), cached)


def test_a_file_without_a_hash_is_refused(cached):
    for hostile in (None, "../../x", "A" * 40):
        listing = [RepositoryFile("config.json", 2, None, hostile)]
        with pytest.raises(UnsafeCheckpointError, match="no hash"):
            download_files(
                listing,
                FakeSource(FILES),
                cached,
                COMMIT,
                retry_policy=QUICK,
                on_progress=lambda _: None,
            )


def test_a_commit_that_is_a_path_is_refused(cached):
    with pytest.raises(UnsafeCheckpointError, match="no commit's name"):
        cached.snapshot("../../../etc")


def test_a_settings_file_of_absurd_size_is_left_where_it_is():
    listing = [
        RepositoryFile("README.md", 10**9, None, "0" * 40),
        RepositoryFile("model.safetensors", 5, "0" * 64, None),
    ]
    _, files = needed_files(listing, VariantSpec("a/b", None, None), {}.__getitem__)
    assert [file.path for file in files] == ["model.safetensors"]


def test_damage_on_disk_is_found(cached):
    folder = run(FakeSource(FILES), cached)
    manifest = cached.manifest(COMMIT)
    assert find_damage(folder, manifest.files) == []
    cached.blob(listed("model.safetensors", WEIGHTS)).write_bytes(b"?" + WEIGHTS[1:])
    cached.blob(listed("config.json", b"{}")).unlink()
    assert [entry.path for entry in find_damage(folder, manifest.files)] == [
        "config.json",
        "model.safetensors",
    ]
    assert not cached.is_whole(COMMIT, ["config.json"])
    assert contents(run(FakeSource(FILES), cached))["config.json"] == b"{}"


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "{" * 100_000, '{"version": 9}'])
def test_a_manifest_that_cannot_be_read_counts_as_absent(cached, text):
    run(FakeSource(FILES), cached)
    cached.manifest_path(COMMIT).write_text(text)
    assert cached.manifest(COMMIT) is None
    again = FakeSource(FILES)
    assert contents(run(again, cached)) == FILES
    assert again.asked == []  # checked where they are, not fetched


def test_the_meter_tells_rate_and_time_left():
    now = [0.0]
    told: list[DownloadProgress] = []
    meter = ProgressMeter(1000, told.append, clock=lambda: now[0])
    meter.found(500)
    for _ in range(4):
        now[0] += 1.0
        meter.received(100)
    assert told[0].percent == 50
    assert told[0].eta_s is None
    assert told[-1].bytes_per_s == pytest.approx(100)
    assert told[-1].eta_s == pytest.approx(1)
    assert told[-1].percent == 90
