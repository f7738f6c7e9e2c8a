"""How much is kept where not all has room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.text.infilling.fitting import FileIds, keep_files, share_room

counts = st.integers(0, 200)
file_ids = st.builds(
    FileIds,
    head=st.lists(st.integers(0, 9), max_size=3),
    text=st.lists(st.integers(0, 9), max_size=20),
    tail=st.lists(st.integers(0, 9), max_size=2),
)


@given(room=counts, num_prefix=counts, num_suffix=counts)
def test_room_is_used_as_far_as_there_is_text(room, num_prefix, num_suffix):
    kept_prefix, kept_suffix = share_room(room, num_prefix, num_suffix)
    assert 0 <= kept_prefix <= num_prefix
    assert 0 <= kept_suffix <= num_suffix
    assert kept_prefix + kept_suffix == min(room, num_prefix + num_suffix)


@given(room=counts, num_prefix=counts, num_suffix=counts)
def test_neither_part_is_left_less_than_its_share(room, num_prefix, num_suffix):
    kept_prefix, kept_suffix = share_room(room, num_prefix, num_suffix)
    assert kept_suffix >= min(num_suffix, room // 4)
    assert kept_prefix >= min(num_prefix, room - room // 4)


def test_what_one_part_does_not_need_the_other_gets():
    assert share_room(100, 1000, 1000) == (75, 25)
    assert share_room(100, 10, 1000) == (10, 90)
    assert share_room(100, 1000, 10) == (90, 10)


@given(files=st.lists(file_ids, max_size=5), room=counts)
def test_kept_files_are_the_last_ones_and_the_end_of_one_more(files, room):
    kept = keep_files(files, room)
    assert sum(file.size for file in kept) <= room
    if not kept:
        return
    whole = files[len(files) - len(kept) :]
    assert kept[1:] == whole[1:]
    first = whole[0]
    assert (kept[0].head, kept[0].tail) == (first.head, first.tail)
    assert kept[0].text == first.text[len(first.text) - len(kept[0].text) :]
    if kept[0] != first:  # then no room is left
        assert sum(file.size for file in kept) == room


@given(files=st.lists(file_ids, max_size=5))
def test_with_room_every_file_is_kept(files):
    assert keep_files(files, sum(file.size for file in files)) == files


def test_a_file_of_which_only_the_frame_has_room_is_dropped():
    file = FileIds([1, 2], [3, 4, 5], [6])
    assert keep_files([file], 3) == []
    assert keep_files([file], 4) == [FileIds([1, 2], [5], [6])]


def test_without_room_nothing_is_kept():
    assert keep_files([FileIds([1], [2], [])], -3) == []
