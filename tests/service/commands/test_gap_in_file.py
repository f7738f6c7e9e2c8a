"""Where something is to be filled in, and how it gets there."""

from __future__ import annotations

import os
import stat

import pytest

from service.client.errors import UnwrittenAnswerError, WrongQuestionError
from service.commands.gap_in_file import find_gap

SOURCE = "def add(a, b):\n    return \n\nprint(add(1, 2))\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "add.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("1:1", ""),
        ("1:5", "def "),
        ("2:12", "def add(a, b):\n    return "),
        ("3:1", "def add(a, b):\n    return \n"),
        ("4:17", SOURCE[:-1]),
        ("5:1", SOURCE),
    ],
)
def test_lines_and_columns_begin_at_one(file, place, before):
    gap = find_gap(f"{file}:{place}")
    assert (gap.prefix, gap.suffix) == (before, SOURCE[len(before) :])


def test_columns_count_characters(tmp_path):
    (tmp_path / "x").write_text("größe = 模型😀!\n")
    assert find_gap(f"{tmp_path / 'x'}:1:12").prefix == "größe = 模型😀"


def test_line_ends_stay_as_they_are_and_are_no_column(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one\r\ntwo\r\n")
    gap = find_gap(f"{path}:1:4")
    assert (gap.prefix, gap.suffix) == ("one", "\r\ntwo\r\n")
    with pytest.raises(WrongQuestionError, match="columns 1 to 4"):
        find_gap(f"{path}:1:5")
    gap.fill("!")
    assert path.read_bytes() == b"one!\r\ntwo\r\n"


def test_a_byte_order_mark_is_no_column(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfab\n")
    find_gap(f"{path}:1:2").fill("-")
    assert path.read_bytes() == b"\xef\xbb\xbfa-b\n"


def test_a_name_may_hold_colons(tmp_path):
    (tmp_path / "a:1:b").write_text("xy")
    assert find_gap(f"{tmp_path / 'a:1:b'}:1:2").prefix == "x"


@pytest.mark.parametrize("place", ["", "x", "x:1", ":1:1", "x:1:", "x:a:1", "x:1:-1", "x:1:²"])
def test_what_is_no_place_is_told_with_an_example(place):
    with pytest.raises(WrongQuestionError, match=r"is no place; give FILE:LINE:COL, as in main"):
        find_gap(place)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("0:1", "has lines 1 to 5, and no line 0"),
        ("6:1", "has lines 1 to 5, and no line 6"),
        (f"{'9' * 5000}:1", "has lines 1 to 5"),
        ("2:0", "has columns 1 to 12, and no column 0"),
        ("2:13", "has columns 1 to 12, and no column 13"),
    ],
)
def test_a_place_outside_of_the_file_is_told_with_its_bounds(file, place, words):
    with pytest.raises(WrongQuestionError, match=words):
        find_gap(f"{file}:{place}")


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    os.mkfifo(tmp_path / "pipe")
    for name, words in [
        ("binary", "no UTF-8"), ("pipe", "named pipe"), ("none", "No such"), (".", "folder")
    ]:  # fmt: skip
        with pytest.raises(WrongQuestionError, match=words):
            find_gap(f"{tmp_path / name}:1:1")


def test_a_large_file_is_refused(file, monkeypatch):
    monkeypatch.setattr("service.commands.gap_in_file.MAX_FILE_BYTES", 10)
    with pytest.raises(WrongQuestionError, match="more than 10 bytes"):
        find_gap(f"{file}:1:1")


def test_filling_keeps_links_and_rights_and_leaves_nothing_behind(file, tmp_path):
    file.chmod(0o750)
    link = tmp_path / "link.py"
    link.symlink_to(file)
    find_gap(f"{link}:2:12").fill("a + b")
    assert file.read_text() == SOURCE.replace("return ", "return a + b")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["add.py", "link.py"]


def test_a_file_that_changed_meanwhile_is_left_as_it_is(file, tmp_path):
    gap = find_gap(f"{file}:1:1")
    file.write_text("changed")
    with pytest.raises(UnwrittenAnswerError, match="has changed meanwhile"):
        gap.fill("x")
    assert file.read_text() == "changed"
    file.unlink()
    with pytest.raises(UnwrittenAnswerError, match="nothing was written"):
        gap.fill("x")
    assert not file.exists()


@pytest.mark.parametrize(
    ("before", "place", "after"),
    [
        (b"a\r\nb\r\n", "1:2", b"a1\r\n2\r\n3\r\nb\r\n"),
        (b"a\nb\n", "1:2", b"a1\n2\n3\nb\n"),
        (b"a\r\nb", "2:2", b"a\r\nb1\r\n2\r\n3"),
        (b"a\nb", "2:2", b"a\nb1\n2\n3"),
        (b"a", "1:2", b"a1\n2\n3"),
        (b"a\nb\r\n", "2:1", b"a\n1\r\n2\r\n3b\r\n"),
    ],
)
def test_what_is_filled_in_gets_the_line_ends_of_the_file(tmp_path, before, place, after):
    path = tmp_path / "x"
    path.write_bytes(before)
    num_characters = find_gap(f"{path}:{place}").fill("1\r\n2\n3")
    assert path.read_bytes() == after
    assert num_characters == len(after) - len(before)


def test_a_file_that_cannot_be_replaced_stays_whole(file, tmp_path, monkeypatch):
    gap = find_gap(f"{file}:1:1")

    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UnwrittenAnswerError, match="cannot be written"):
        gap.fill("x")
    assert file.read_text() == SOURCE
    assert [path.name for path in tmp_path.iterdir()] == ["add.py"]
