"""Files are compared with their hashes when they must be, and what differs is named."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from loaders.errors import (
    CheckpointError,
    LoadError,
    NotEnoughMemoryError,
    QuantizationNotFoundError,
    SettingsError,
    TensorError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    UnsupportedQuantizationError,
)
from loaders.records import Records
from loaders.repository import verification
from loaders.repository.snapshot import Snapshot
from loaders.repository.spec import parse_spec
from loaders.repository.verification import Verification, VerifiedFiles, _Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loaders.repository.verification import VerifyMode

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": 1}',
    "model-00001-of-00002.safetensors": b"first" * 3000,
    "model-00002-of-00002.safetensors": b"second" * 5000,
}
SHARDS = [name for name in FILES if name.endswith(".safetensors")]
NUM_BYTES = sum(len(FILES[name]) for name in SHARDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in FILES]
    (folder / "SHA256SUMS").write_text("".join(lines))


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Change one bit in place, so that the size and the inode stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def no_progress(_phase: str, _percent: float | None) -> None:
    pass


def prepared(folder: Path, mode: VerifyMode = "changed") -> Verification:
    spec = parse_spec(str(folder))
    snapshot = Snapshot(folder, commit=None)
    return Verification(spec, snapshot, mode, Records(folder.parent / "cache"))


def verify(
    folder: Path,
    mode: VerifyMode = "changed",
    on_progress: Callable[[str, float | None], None] = lambda _phase, _percent: None,
) -> VerifiedFiles:
    one = prepared(folder, mode)
    one.check_small_files()
    one.begin([folder / name for name in SHARDS])
    return one.finish(on_progress)


def test_the_first_load_hashes_all_and_the_next_only_the_small_ones(folder: Path):
    first = verify(folder)
    assert (first.num_files, first.num_unchanged) == (4, 0)
    assert first.num_bytes == sum(map(len, FILES.values()))
    again = verify(folder)
    assert (again.num_files, again.num_unchanged) == (2, 2)
    assert again.num_bytes == first.num_bytes - NUM_BYTES


@pytest.mark.parametrize("name", SHARDS)
def test_a_flipped_bit_in_a_shard_is_named_with_what_to_do(folder: Path, name: str):
    flip(folder / name)
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    expected = hashlib.sha256(FILES[name]).hexdigest()[:12]
    assert f"{name} is damaged: sha256 {expected}… expected" in str(caught.value)
    assert "SHA256SUMS if the change is meant" in str(caught.value)
    assert not any(other in str(caught.value) for other in SHARDS if other != name)


def test_all_damaged_shards_are_named(folder: Path):
    for name in SHARDS:
        flip(folder / name)
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    assert all(f"{name} is damaged" in str(caught.value) for name in SHARDS)


def test_a_small_file_is_compared_before_weights_are_looked_at(folder: Path):
    flip(folder / "tokenizer.json", keep_time=True)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        prepared(folder).check_small_files()


def test_what_lies_elsewhere_and_nobody_opens_is_not_hashed(folder: Path, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    sums = (folder / "SHA256SUMS").read_text()
    for name in ("README.md", "extra.json"):
        (folder / name).symlink_to(secret)
        sums += f"{'0' * 64}  {name}\n"
    (folder / "SHA256SUMS").write_text(sums)
    assert verify(folder).num_files == 4


def test_another_size_says_the_sizes(folder: Path):
    sums = (folder / "SHA256SUMS").read_bytes()
    one = prepared(folder)
    (folder / SHARDS[0]).write_bytes(FILES[SHARDS[0]][:-1])
    assert (folder / "SHA256SUMS").read_bytes() == sums
    one.begin([folder / SHARDS[0]])
    with pytest.raises(CheckpointError, match="15000 bytes expected, 14999 found"):
        one.finish(lambda _phase, _percent: None)


def test_a_change_after_a_good_load_is_found(folder: Path):
    verify(folder)
    flip(folder / SHARDS[1])
    with pytest.raises(CheckpointError, match=SHARDS[1]):
        verify(folder)
    with pytest.raises(CheckpointError, match=SHARDS[1]):  # what was damaged is on no record
        verify(folder)


def test_a_file_put_in_the_place_of_another_is_hashed_again(folder: Path):
    """Of the same size and time: the inode tells."""
    verify(folder)
    path = folder / SHARDS[0]
    status = path.stat()
    other = folder / "fresh"
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    with pytest.raises(CheckpointError, match=SHARDS[0]):
        verify(folder)


def test_another_expected_hash_is_another_question(folder: Path):
    verify(folder)
    sums = (folder / "SHA256SUMS").read_text()
    known = hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    (folder / "SHA256SUMS").write_text(sums.replace(known, "0" * 64))
    with pytest.raises(CheckpointError, match=SHARDS[0]):
        verify(folder)


def test_a_record_is_no_word_for_the_same_files_elsewhere(folder: Path, tmp_path: Path):
    verify(folder)
    other = tmp_path / "other"
    folder.rename(other)
    assert verify(other).num_unchanged == 0
    assert verify(other).num_unchanged == 2


def test_always_finds_what_changed_cannot_see(folder: Path):
    verify(folder)
    flip(folder / SHARDS[0], keep_time=True)
    assert verify(folder).num_unchanged == 2
    with pytest.raises(CheckpointError, match=f"{SHARDS[0]} is damaged"):
        verify(folder, "always")


def unexpected(*_: object) -> None:
    raise AssertionError("hashed")


def test_what_was_found_damaged_once_is_not_trusted_again(folder: Path):
    verify(folder)
    flip(folder / SHARDS[0], keep_time=True)
    with pytest.raises(CheckpointError, match="damaged"):
        verify(folder, "always")
    with pytest.raises(CheckpointError, match="damaged"):
        verify(folder, "changed")


def test_never_reads_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    flip(folder / SHARDS[0])
    flip(folder / "config.json")

    monkeypatch.setattr(verification, "_compare", unexpected)
    found = verify(folder, "never")
    assert (found.num_files, found.num_bytes) == (0, 0)
    assert not (folder.parent / "cache" / "records").exists()


def test_a_folder_without_hashes_is_told_once_and_loads(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "SHA256SUMS").unlink()
    assert verify(folder).num_unknown == 2
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "files_without_hashes" in line
    ]
    assert len(lines) == 1
    assert "files=2" in lines[0]


def test_records_that_make_no_sense_count_as_none(folder: Path):
    verify(folder)
    (record,) = (folder.parent / "cache" / "records").glob("*.json")
    for text in ("[", '{"verified": 3}', '{"verified": {"a": null}}'):
        record.write_text(text)
        assert verify(folder).num_unchanged == 0


def test_an_error_that_damage_leads_to_is_told_as_the_damage(folder: Path):
    flip(folder / SHARDS[1])
    with (
        pytest.raises(CheckpointError, match=f"{SHARDS[1]} is damaged") as caught,
        prepared(folder).explaining_errors(no_progress),
    ):
        raise CheckpointError("a header makes no sense")
    assert "header" in str(caught.value.__cause__)


def test_errors_of_whole_files_and_of_the_machine_stay_what_they_are(folder: Path):
    with (
        pytest.raises(CheckpointError, match="makes no sense"),
        prepared(folder).explaining_errors(no_progress),
    ):
        raise CheckpointError("a header makes no sense")
    flip(folder / SHARDS[1])
    for error in (NotEnoughMemoryError("too large"), KeyboardInterrupt()):
        one = prepared(folder)
        one.begin([folder / name for name in SHARDS])
        with pytest.raises(type(error)), one.explaining_errors(no_progress):
            raise error
    for thread in threading.enumerate():
        if thread.name.startswith("verify"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("a size"), UnsafeCheckpointError("a link"), UnsupportedModelError("experts"),
        UnsupportedQuantizationError("3.5 bits"), QuantizationNotFoundError("no settings"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_settings_and_names_refuse_is_refused_without_hashing_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: LoadError
):
    flip(folder / SHARDS[0])
    one = prepared(folder)
    monkeypatch.setattr(verification, "_compare", unexpected)
    with pytest.raises(type(error), match=str(error)), one.explaining_errors(no_progress):
        raise error


def test_the_settings_of_a_gguf_file_may_be_its_damage(folder: Path):
    for name in SHARDS:
        (folder / name).unlink()
    (folder / "m.gguf").write_bytes(b"weights")
    name = hashlib.sha256(b"whole").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{name}  m.gguf\n")
    with (
        pytest.raises(CheckpointError, match=r"m\.gguf is damaged"),
        prepared(folder).explaining_errors(no_progress),
    ):
        raise UnsupportedModelError("an architecture called lmama")


def test_sizes_that_differ_and_files_that_are_gone_are_told_without_hashing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    one = prepared(folder)
    (folder / SHARDS[0]).write_bytes(b"short")
    (folder / SHARDS[1]).unlink()
    monkeypatch.setattr(verification, "_compare", unexpected)
    with (
        pytest.raises(CheckpointError, match=r"15000 bytes expected, 5 found.*cannot be read"),
        one.explaining_errors(no_progress),
    ):
        raise CheckpointError("a header makes no sense")


def test_a_refused_variant_is_hashed_once_and_the_wait_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verification, "_REPORT_INTERVAL_S", 0.001)
    told: list[tuple[str, float | None]] = []
    with (
        pytest.raises(TensorError, match="NaN"),
        hold_up(monkeypatch, told) as note,
        prepared(folder).explaining_errors(note),
    ):
        raise TensorError("NaN")
    assert told[0] == ("verifying the files", 0.0)
    monkeypatch.setattr(verification, "_compare", unexpected)
    with pytest.raises(TensorError, match="NaN"), prepared(folder).explaining_errors(no_progress):
        raise TensorError("NaN")


@contextmanager
def hold_up(
    monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, float | None]]
) -> Iterator[Callable[[str, float | None], None]]:
    """Hash nothing until progress was told once."""
    go_on, compare = threading.Event(), verification._compare

    def held_up(*arguments: object) -> object:
        go_on.wait(10)
        return compare(*arguments)  # type: ignore[arg-type]

    def note(phase: str, percent: float | None) -> None:
        told.append((phase, percent))
        go_on.set()

    with monkeypatch.context() as patched:
        patched.setattr(verification, "_compare", held_up)
        yield note


def wait_until_stopped(tally: _Tally) -> None:
    if not tally.stop.wait(10):
        raise AssertionError("nobody ended the thread")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the caller's own")])
def test_an_error_while_waiting_ends_the_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    def interrupt(_phase: str, _percent: float | None) -> None:
        raise error

    monkeypatch.setattr(verification, "_REPORT_INTERVAL_S", 0.001)
    one = prepared(folder)
    monkeypatch.setattr(verification, "_compare", lambda _p, _f, tally: wait_until_stopped(tally))
    one.begin([folder / name for name in SHARDS])
    with pytest.raises(type(error)):
        one.finish(interrupt)
    assert one._tally.stop.is_set()


def test_a_thread_that_fails_ends_the_wait_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(path: Path, _file: object, tally: _Tally) -> None:
        if path.name == SHARDS[0]:
            raise MemoryError("no room for a buffer")
        wait_until_stopped(tally)

    calls = 0

    def count(_phase: str, _percent: float | None) -> None:
        nonlocal calls
        calls += 1
        assert calls < 20, "waiting goes round in circles"

    one = prepared(folder)
    monkeypatch.setattr(verification, "_compare", fail)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    one.begin([folder / name for name in SHARDS])
    with pytest.raises(MemoryError):
        one.finish(count)


def test_waiting_tells_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[str, float | None]] = []
    monkeypatch.setattr(verification, "_REPORT_INTERVAL_S", 0.01)
    with hold_up(monkeypatch, told) as note:
        one = prepared(folder)
        one.begin([folder / name for name in SHARDS])
        one.finish(note)
    assert told[0] == ("verifying the files", 0.0)
    assert all(0 <= (percent or 0) <= 100 for _, percent in told)


def test_a_pipe_in_place_of_a_shard_is_no_file(folder: Path):
    one = prepared(folder)
    (folder / SHARDS[0]).unlink()
    os.mkfifo(folder / SHARDS[0])
    one.begin([folder / SHARDS[0]])
    with pytest.raises(CheckpointError, match="no regular file"):
        one.finish(lambda _phase, _percent: None)
