"""How the context is shared between a gap's prompt and its answer."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import ContextLengthError
from service.serving.infilling import AnswerRoom, Gap, plan_infill
from service.serving.prompts import CutTokens
from service.text.errors import InfillingNotSupportedError, InvalidInfillingError
from service.text.infilling.infilling import InfillFile
from tests.service.fakes import (
    GAP_PIECES,
    FakeEngine,
    gap_infilling,
    gap_tokenizer,
    says,
    served_model,
)

LIMIT = 64
FRAME = 4  # `<s>` and three pieces


@pytest.fixture(scope="module")
def tokenizer():
    return gap_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    engine = FakeEngine(says(tokenizer, "x"), max_model_len=LIMIT)
    return served_model(engine, tokenizer, infilling=gap_infilling(tokenizer))


def plan(model, room: AnswerRoom, prefix="ab", suffix="cd", **gap):
    bounds = {name: gap.pop(name) for name in ("most_prompt", "echo") if name in gap}
    return asyncio.run(plan_infill(Gap(prefix=prefix, suffix=suffix, **gap), model, room, **bounds))


def text_of(planned, tokenizer) -> str:
    ids = list(planned.prompt.token_ids)
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_parts_stand_as_the_family_writes_them(model, tokenizer):
    planned = plan(model, AnswerRoom.at_most(9, LIMIT), prompt="e", files=[InfillFile("f.py", "g")])
    assert text_of(planned, tokenizer) == (
        "<s><repo_name>myproject<file_sep>f.py\ng<file_sep>"
        "<fim_prefix>abe<fim_suffix>cd<fim_middle>"
    )
    assert not planned.prompt.cut


def test_family_s_pieces_end_the_answer(model, tokenizer):
    ids = {tokenizer.backend_tokenizer.token_to_id(piece) for piece in GAP_PIECES}
    assert ids <= plan(model, AnswerRoom.at_most(9, LIMIT)).end_token_ids


def test_answer_without_a_bound_gets_what_the_prompt_leaves(model):
    assert plan(model, AnswerRoom.at_most(None, LIMIT)).max_tokens == LIMIT - FRAME - len("abcd")


def test_answer_without_a_bound_keeps_a_quarter_from_a_prompt_that_would_fill_all(model):
    planned = plan(model, AnswerRoom.at_most(None, LIMIT), prefix="a" * 100)
    assert planned.max_tokens == LIMIT // 4
    assert planned.prompt.cut == CutTokens(prefix=100 + FRAME + len("cd") - LIMIT * 3 // 4)


@pytest.mark.parametrize(("most", "kept_free"), [(3, 3), (1000, LIMIT // 4)])
def test_upper_bound_keeps_no_more_than_that_and_no_more_than_it_needs(model, most, kept_free):
    planned = plan(model, AnswerRoom.at_most(most, LIMIT), prefix="a" * 100)
    assert planned.max_tokens == kept_free
    assert len(planned.prompt.token_ids) == LIMIT - kept_free


def test_of_a_long_context_little_is_kept_free_for_an_answer_without_a_bound():
    assert AnswerRoom.at_most(None, 100_000) == AnswerRoom(max_tokens=None, reserved=256)


def test_upper_bound_cuts_nothing_where_the_prompt_has_room(model):
    planned = plan(model, AnswerRoom.at_most(1000, LIMIT), prefix="a" * 40)
    assert not planned.prompt.cut
    assert planned.max_tokens == LIMIT - FRAME - 42


def test_exact_length_is_kept_free_whatever_is_cut(model):
    planned = plan(
        model, AnswerRoom.exactly(50, LIMIT, length_param="max_tokens"), prefix="a" * 100
    )
    assert planned.max_tokens == 50
    assert len(planned.prompt.token_ids) == LIMIT - 50


def test_no_answer_at_all_leaves_the_prompt_all_but_one_token(model):
    planned = plan(model, AnswerRoom.exactly(0, LIMIT, length_param="max_tokens"), prefix="a" * 100)
    assert planned.max_tokens == 0
    assert len(planned.prompt.token_ids) == LIMIT - 1


def test_what_is_cut_is_counted_by_part_and_sums_up(model):
    planned = plan(
        model,
        AnswerRoom.at_most(32, LIMIT),
        "a" * 100,
        "b" * 100,
        files=[InfillFile("f", "c" * 100)],
    )
    cut = planned.prompt.cut
    assert (cut.prefix, cut.suffix) == (100 - 33, 100 - 11)
    assert cut.files > 100
    assert cut + CutTokens(1, 2, 3) == CutTokens(cut.prefix + 1, cut.suffix + 2, cut.files + 3)


def test_prompt_s_own_bound_counts_too(model):
    assert (
        len(plan(model, AnswerRoom.at_most(8, LIMIT), "a" * 50, most_prompt=20).prompt.token_ids)
        == 20
    )


def test_what_is_echoed_goes_with_the_prompt(model):
    assert plan(model, AnswerRoom.at_most(8, LIMIT), echo="ab").prompt.text == "ab"


def test_length_beyond_the_context_is_refused_by_its_field():
    with pytest.raises(
        ContextLengthError, match=r"context length is 64 tokens.*asks for 64"
    ) as info:
        AnswerRoom.exactly(64, LIMIT, length_param="max_length")
    assert info.value.param == "max_length"


def test_context_without_room_for_the_pieces_is_refused(model):
    with pytest.raises(InvalidInfillingError, match="no room"):
        plan(model, AnswerRoom.exactly(LIMIT - FRAME, LIMIT, length_param="max_tokens"))


def test_variant_that_cannot_says_why(tokenizer):
    model = served_model(FakeEngine(says(tokenizer, "x")), tokenizer)
    with pytest.raises(InfillingNotSupportedError, match="no pieces that mark a gap"):
        plan(model, AnswerRoom.at_most(8, LIMIT))
