"""Parts of control pieces at the ends of texts, and words that only look like ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.piece_edges import PieceEdges

PIECES = ["<s>", "</s>", "<|im_end|>", "<|object_ref|>", "[INST]", "user"]
EDGES = PieceEdges(PIECES)


def without(text: str, places: list[int]) -> str:
    return "".join("?" if n in places else character for n, character in enumerate(text))


@given(
    before=st.sampled_from(["", "<", "</", "<|", "[", "> <"]),
    behind=st.sampled_from(["", ">", "|>", "]", "></"]),
    text=st.lists(
        st.sampled_from(["<", "|", "im_end", "s", "/", ">", "[", "INST", "]", "x", " "]), max_size=6
    ).map("".join),
)
def test_punctuation_around_a_text_makes_no_piece_of_its_ends(before, behind, text):
    """What is whole within it is another's business."""
    shown = before + without(text, EDGES.places(text)) + behind
    for piece in PIECES[:-1]:
        inside = len(before), len(before) + len(text)
        for start in range(len(shown)):
            end = start + len(piece)
            is_whole = inside[0] <= start and end <= inside[1]
            is_beside = end <= inside[0] or start >= inside[1]
            assert is_whole or is_beside or shown[start:end] != piece


@pytest.mark.parametrize(
    "text", ["", "object", "string", "type", "use", "ser", "a < b", "> quoted", "] )", "x = [1]"]
)
def test_ordinary_words_are_left_alone(text):
    """Templates compare them: `schema.type == 'object'`."""
    assert EDGES.places(text) == []


def test_without_pieces_nothing_is_found():
    assert PieceEdges([]).places("<s") == []
