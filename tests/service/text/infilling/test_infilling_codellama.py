"""CodeLlama's ids against those of the sentencepiece library, by the rule of Meta's own code.

The library gets a model made of the real Llama 2 vocabulary and CodeLlama's 16 pieces; nothing of
ours has a hand in what it expects.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from service.text.infilling.families import InfillOrder

BOS, PRE, SUF, MID, EOT = 1, 32007, 32008, 32009, 32010
PSM, SPM = InfillOrder.PREFIX_FIRST, InfillOrder.SUFFIX_FIRST
EDGES = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n    ",
    "\t",
    "😀",
    "👩‍👩‍👧 x",
    "☺",
    "☺☺ y",
    " ☺",
    "▁",
    "é",
    "\r\n",
]
CODE = [
    "def f(x):\n    return ",
    "\n\n\nprint(f(2))  # größer\n",
    "if a <= b:\n\tpass",
    "x = '漢字'",
]

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
# What code is made of, and anything else but the letter with which all of the pieces begin.
texts = st.lists(
    st.sampled_from([" ", "  ", "\n", "\t", "☺", "▁", "def", "(x)", "0", "é", "😀", "\x00", "_"])
    | st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=8),
    max_size=8,
).map("".join)


class Published:
    """What Meta's code makes of prefix and suffix, written out here."""

    def __init__(self, model: bytes) -> None:
        self._library = SentencePieceProcessor(model_proto=model)

    def ids(self, prefix: str, suffix: str, order: InfillOrder) -> list[int]:
        before = self._library.encode(prefix)
        behind = self._library.encode("☺" + suffix)[2:]
        if order is PSM:
            return [BOS, PRE, *before, SUF, *behind, MID]
        return [BOS, PRE, SUF, *behind, MID, *before]

    def piece_id(self, piece: str) -> int:
        return self._library.piece_to_id(piece)


@pytest.fixture(scope="session")
def published(codellama_model) -> Published:
    return Published(codellama_model)


@pytest.fixture(scope="session", params=["codellama_infilling", "codellama_model_infilling"])
def infilling(request):
    """From a tokenizer.json, and from a tokenizer.model."""
    return request.getfixturevalue(request.param)


def test_the_library_has_codellamas_pieces_at_codellamas_ids(published):
    pieces = {"<s>": BOS, "▁<PRE>": PRE, "▁<SUF>": SUF, "▁<MID>": MID, "▁<EOT>": EOT}
    assert {piece: published.piece_id(piece) for piece in pieces} == pieces
    assert published.piece_id("▁<SU") == 32000
    assert published.piece_id("▁<EOT>" * 6) == 32015


@pytest.mark.parametrize("order", InfillOrder)
@pytest.mark.parametrize("prefix", [*EDGES, *CODE])
def test_ids_are_those_of_the_library(infilling, published, prefix, order):
    for suffix in [*EDGES, *CODE]:
        made = infilling.assemble(prefix, suffix, max_tokens=1000, order=order)
        assert made.token_ids == published.ids(prefix, suffix, order), (prefix, suffix)


@given(prefix=texts, suffix=texts, order=st.sampled_from(InfillOrder))
@with_vocabulary
def test_ids_are_those_of_the_library_for_any_text(infilling, published, prefix, suffix, order):
    made = infilling.assemble(prefix, suffix, max_tokens=10_000, order=order)
    assert made.token_ids == published.ids(prefix, suffix, order)


@given(prefix=texts, suffix=texts)
@with_vocabulary
def test_the_default_is_prefix_first(infilling, published, prefix, suffix):
    made = infilling.assemble(prefix, suffix, max_tokens=10_000)
    assert infilling.order is PSM
    assert made.token_ids == published.ids(prefix, suffix, PSM)


@pytest.mark.parametrize("typed", ["<PRE>", " <PRE>", "▁<PRE>", "x <SUF> y", "<MID>", " <EOT>"])
def test_typed_pieces_are_text_however_they_are_spelt(infilling, published, typed):
    """The library itself takes " <PRE>" for the piece: an injection, where users type."""
    made = infilling.assemble(typed, typed, max_tokens=1000)
    assert [token_id for token_id in made.token_ids if token_id >= PRE] == [PRE, SUF, MID]


def test_the_library_would_take_typed_pieces_for_real_ones(published):
    assert published.ids("x <PRE>", "", PSM).count(PRE) == 2
