from __future__ import annotations

import json
import os
import stat

import pytest
from structlog.testing import capture_logs

from engine.measured.kept_choices import FILE_NAME, KeptChoices

HERE, ELSEWHERE = {"cpu": "this", "threads": "2"}, {"cpu": "this", "threads": "1"}


def events(logs):
    return [line["event"] for line in logs]


def test_what_was_chosen_is_read_back_on_the_same_machine_only(tmp_path):
    folder = tmp_path / "new" / "records"
    KeptChoices(folder, HERE).add({"a": ["native", "tiles", 64]})
    KeptChoices(folder, ELSEWHERE).add({"a": ["native", "tiles", 8]})
    KeptChoices(folder, HERE).add({"b": "windows"})
    assert KeptChoices(folder, HERE).read() == {"a": ["native", "tiles", 64], "b": "windows"}
    assert KeptChoices(folder, ELSEWHERE).read() == {"a": ["native", "tiles", 8]}
    assert KeptChoices(folder, {"cpu": "that"}).read() == {}


def test_a_choice_that_is_made_anew_takes_the_place_of_the_old_one(tmp_path):
    for chosen in ("one", "other"):
        KeptChoices(tmp_path, HERE).add({"a": chosen})
    assert KeptChoices(tmp_path, HERE).read() == {"a": "other"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"format": 2, "machines": []}',
        b'{"format": 1}',
        b'{"format": 1, "machines": [7]}',
        b'{"format": 1, "machines": [{"machine": {}, "choices": []}]}',
        b" " * 1_000_001,
    ],
    ids=lambda content: content[:24].decode(errors="replace"),
)
def test_a_file_that_is_no_such_file_counts_as_absent_and_is_told_and_replaced(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    kept = KeptChoices(tmp_path, HERE)
    with capture_logs() as logs:
        assert kept.read() == {}
        kept.add({"a": "one"})
    assert events(logs) == ["kernel_choices_unreadable"]  # once, though it is read twice
    assert kept.read() == {"a": "one"}


def test_an_absent_file_is_nothing_to_tell(tmp_path):
    with capture_logs() as logs:
        assert KeptChoices(tmp_path / "none", HERE).read() == {}
    assert logs == []


def test_where_nothing_can_be_written_that_is_told_and_nothing_else_happens(tmp_path):
    (tmp_path / "records").write_text("a file where the folder should be")
    with capture_logs() as logs:
        KeptChoices(tmp_path / "records", HERE).add({"a": "one"})
    assert events(logs) == ["kernel_choices_not_kept"]


def test_the_file_does_not_grow_with_machines_and_choices(tmp_path):
    for threads in range(20):
        KeptChoices(tmp_path, {"threads": str(threads)}).add({"a": "one"})
    content = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert [entry["machine"]["threads"] for entry in content["machines"]] == [
        str(threads) for threads in range(4, 20)
    ]
    KeptChoices(tmp_path, HERE).add({str(i): "one" for i in range(300)})
    assert list(KeptChoices(tmp_path, HERE).read()) == [str(i) for i in range(44, 300)]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    kept = KeptChoices(tmp_path, HERE)
    kept.add({"a": "one"})

    def fail(*_args, **_more):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", fail)
    with capture_logs() as logs:
        kept.add({"a": "other"})
    assert events(logs) == ["kernel_choices_not_kept"]
    assert kept.read() == {"a": "one"}
    assert set(os.listdir(tmp_path)) <= {FILE_NAME, f".{FILE_NAME}.lock"}


def test_other_users_of_a_shared_folder_can_read_the_file(tmp_path):
    KeptChoices(tmp_path, HERE).add({"a": "one"})
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o644
