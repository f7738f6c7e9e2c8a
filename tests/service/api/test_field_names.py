"""Which names an error may repeat, and how many of them."""

from __future__ import annotations

from service.api.field_names import MAX_REPEATED, UNSPEAKABLE, num_repeatable, safe_path


def test_as_many_names_are_repeated_as_have_room_and_one_at_least():
    names = ["n" * 50] * 9
    assert num_repeatable(names, None) == MAX_REPEATED // 50
    assert num_repeatable(names, names[0]) == MAX_REPEATED // 50 - 1
    assert num_repeatable(["n" * 500], None) == 1
    assert num_repeatable(["a", "b"], None) == 2


def test_paths_of_short_names_are_whole():
    assert safe_path(["messages", "0", "content", "1", "text"]) == "messages.0.content.1.text"
    assert safe_path([]) == ""


def test_long_paths_end_where_they_have_become_long_enough():
    path = safe_path(["n" * 60] * 9)
    assert path == f"{'n' * 60}..."
    assert 2 * len(safe_path(["nnnnn"] * 900)) <= MAX_REPEATED


def test_what_nobody_would_write_is_not_repeated_in_a_path():
    assert safe_path(["messages", "sk secret"]) == f"messages.{UNSPEAKABLE}"
