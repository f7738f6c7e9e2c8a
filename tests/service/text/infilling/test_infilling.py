"""Prompts with a gap: what each family writes, what is text, what is cut, what ends the middle.

CodeLlama's ids have a file of their own. DeepSeek-Coder's, StarCoder's and Qwen-Coder's are held
against what their tokenizers make of the text that their publishers show, on the real vocabularies;
Codestral's and CodeGemma's against sentencepiece, on synthetic ones, as theirs are not at hand.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from service.text.errors import (
    InfillingNotSupportedError,
    InfillSettingError,
    InvalidInfillingError,
    InvalidPromptError,
    InvalidTextError,
)
from service.text.facts import VariantFacts
from service.text.infilling.families import SANTACODER, InfillOrder
from service.text.infilling.infilling import InfillFile, Infilling, resolve_infilling

PSM, SPM = InfillOrder.PREFIX_FIRST, InfillOrder.SUFFIX_FIRST
ALL = ["codellama", "deepseek", "starcoder", "qwen", "codestral", "codegemma"]
EDGES = ["", "  ", "\n\n  x", "def f(x):\n    return ", "😀é漢", "\n\nprint(f(2))\n"]
PLENTY = 100_000

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
texts = st.text(st.characters(exclude_characters="<[", exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(params=ALL)
def infilling(request) -> Infilling:
    """Each family's in turn."""
    return request.getfixturevalue(f"{request.param}_infilling")


def parsed(tokenizer, text) -> list[int]:
    """Encode text as a raw prompt, in which pieces are parsed."""
    return tokenizer.backend_tokenizer.encode(text).ids


def ids_of(tokenizer, *pieces) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(piece) for piece in pieces}


# What each family writes


@pytest.mark.parametrize("suffix", EDGES)
@pytest.mark.parametrize("prefix", EDGES)
def test_deepseek_coder_begins_prefix_hole_suffix_end(
    deepseek_infilling, deepseek_coder, prefix, suffix
):
    shown = f"<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>"
    made = deepseek_infilling.assemble(prefix, suffix, max_tokens=PLENTY)
    assert made.token_ids == parsed(deepseek_coder, shown)
    assert {32015, 32016, 32017} <= set(made.token_ids)


@pytest.mark.parametrize("suffix", EDGES)
@pytest.mark.parametrize("prefix", EDGES)
def test_starcoder_writes_both_orders(starcoder_infilling, starcoder, prefix, suffix):
    psm = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    spm = f"<fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}"
    for order, shown in ((None, psm), (PSM, psm), (SPM, spm)):
        made = starcoder_infilling.assemble(prefix, suffix, max_tokens=PLENTY, order=order)
        assert made.token_ids == parsed(starcoder, shown)


@pytest.mark.parametrize("suffix", EDGES)
@pytest.mark.parametrize("prefix", EDGES)
def test_qwen_coder_uses_its_pieces_at_their_published_ids(
    qwen_infilling, qwen_coder, prefix, suffix
):
    made = qwen_infilling.assemble(prefix, suffix, max_tokens=PLENTY)
    shown = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    assert made.token_ids == parsed(qwen_coder, shown)
    assert (made.token_ids[0], made.token_ids[-1]) == (151659, 151660)
    assert 151661 in made.token_ids


@given(prefix=texts, suffix=texts)
@with_vocabulary
def test_codestral_writes_the_suffix_first_without_a_space_mark(
    codestral_infilling, codestral_model, prefix, suffix
):
    library = SentencePieceProcessor(model_proto=codestral_model)
    guard = library.encode("☺")
    ids = [
        *(library.bos_id(), library.piece_to_id("[SUFFIX]")),
        *library.encode("☺" + suffix)[len(guard) :],
        *(library.piece_to_id("[PREFIX]"), *library.encode(prefix)),
    ]
    made = codestral_infilling.assemble(prefix, suffix, max_tokens=PLENTY)
    assert made.token_ids == ids


@given(prefix=texts, suffix=texts)
@with_vocabulary
def test_codegemma_writes_no_space_mark_anywhere(
    codegemma_infilling, codegemma_model, prefix, suffix
):
    library = SentencePieceProcessor(model_proto=codegemma_model)
    ids = [
        *(library.bos_id(), library.piece_to_id("<|fim_prefix|>"), *library.encode(prefix)),
        *(library.piece_to_id("<|fim_suffix|>"), *library.encode(suffix)),
        library.piece_to_id("<|fim_middle|>"),
    ]
    made = codegemma_infilling.assemble(prefix, suffix, max_tokens=PLENTY)
    assert made.token_ids == ids


def test_santacoder_spells_its_pieces_in_its_own_way(starcoder):
    parts = json.loads(starcoder.backend_tokenizer.to_str())
    backend = starcoder.backend_tokenizer.from_str(json.dumps(parts))
    backend.add_special_tokens(
        [AddedToken(f"<fim-{name}>") for name in ("prefix", "suffix", "middle")]
    )
    santacoder = type(starcoder)(tokenizer_object=backend, eos_token="<|endoftext|>")
    made = Infilling(santacoder, SANTACODER).assemble("a", "b", max_tokens=9)
    assert made.token_ids == parsed(santacoder, "<fim-prefix>a<fim-suffix>b<fim-middle>")


def test_what_a_tokenizer_puts_before_texts_stands_there_once_or_not_at_all(
    codellama_infilling, deepseek_infilling, starcoder_infilling, qwen_infilling
):
    for infilling, bos in ((codellama_infilling, 1), (deepseek_infilling, 32013)):
        assert infilling.assemble("<s>a", "b", max_tokens=PLENTY).token_ids.count(bos) == 1
    for infilling, first in ((starcoder_infilling, 1), (qwen_infilling, 151659)):
        assert infilling.assemble("a", "b", max_tokens=PLENTY).token_ids[0] == first


def test_an_order_that_the_family_was_not_trained_with_is_refused(
    qwen_infilling, codestral_infilling
):
    with pytest.raises(InvalidInfillingError, match="in the order 'psm' alone"):
        qwen_infilling.assemble("a", "b", max_tokens=PLENTY, order=SPM)
    with pytest.raises(InvalidInfillingError, match="in the order 'spm' alone"):
        codestral_infilling.assemble("a", "b", max_tokens=PLENTY, order=PSM)


def test_the_prompt_goes_on_with_the_prefix(infilling):
    """As llama.cpp places it: right before the gap, and no mark or border between."""
    joined = infilling.assemble("def f(x):\n    retu", "\n", max_tokens=PLENTY)
    parted = infilling.assemble("def f(x):\n", "\n", max_tokens=PLENTY, prompt="    retu")
    assert parted == joined


# What is text


def test_pieces_that_users_type_are_text_everywhere(infilling):
    stops = infilling.record["stop"]
    plain = infilling.assemble("a", "b", max_tokens=PLENTY, files=[InfillFile("f", "c")])
    for piece in stops:
        made = infilling.assemble(
            f"a{piece}",
            f"{piece}b",
            max_tokens=PLENTY,
            files=[InfillFile(f"{piece}f", f"c{piece}")],
            prompt=piece,
        )
        placed = [i for i in made.token_ids if i in infilling.stop_token_ids]
        assert placed == [i for i in plain.token_ids if i in infilling.stop_token_ids]


def test_text_that_is_not_unicode_is_refused_and_its_place_told(infilling):
    for prefix, suffix in (("ab\ud800", ""), ("", "ab\ud800")):
        with pytest.raises(InvalidPromptError, match="position 2"):
            infilling.assemble(prefix, suffix, max_tokens=PLENTY)


# Other files


def test_qwen_coder_writes_other_files_in_its_repository_form(qwen_infilling, qwen_coder):
    files = [InfillFile("a.py", "x = 1\n"), InfillFile("b/c.py", "  y")]
    made = qwen_infilling.assemble("p", "s", max_tokens=PLENTY, files=files)
    shown = (
        "<|repo_name|>myproject\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b/c.py\n  y"
        "<|file_sep|>filename\n<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )
    # Between a name and its text is a border that the tokenizer would not make.
    assert qwen_coder.decode(made.token_ids) == shown
    assert qwen_infilling.has_file_pieces


def test_starcoder2_writes_other_files_in_its_own_form(starcoder_infilling, starcoder):
    files = [InfillFile("a.py", "x = 1\n"), InfillFile("b/c.py", "y")]
    made = starcoder_infilling.assemble("p", "s", max_tokens=PLENTY, files=files)
    assert starcoder.decode(made.token_ids) == (
        "<repo_name>myproject<file_sep>a.py\nx = 1\n<file_sep>b/c.py\ny"
        "<file_sep><fim_prefix>p<fim_suffix>s<fim_middle>"
    )


def test_codegemma_ends_each_file_with_its_separator(codegemma_infilling, codegemma):
    made = codegemma_infilling.assemble(
        "p", "s", max_tokens=PLENTY, files=[InfillFile("a.py", "x = 1\n")]
    )
    assert codegemma.decode(made.token_ids) == (
        "<s>a.py\nx = 1\n<|file_separator|><|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )


def test_without_pieces_for_files_they_are_plain_text_behind_bos(
    codellama_infilling, codellama_of_json, deepseek_infilling, deepseek_coder
):
    files = [InfillFile("a.py", " x = 1"), InfillFile("b.py", "y")]
    for infilling, tokenizer in (
        (codellama_infilling, codellama_of_json),
        (deepseek_infilling, deepseek_coder),
    ):
        assert not infilling.has_file_pieces
        made = infilling.assemble("p", "s", max_tokens=PLENTY, files=files).token_ids
        alone = infilling.assemble("p", "s", max_tokens=PLENTY).token_ids
        assert made[0] == alone[0]
        assert made[-len(alone) + 1 :] == alone[1:]
        text = tokenizer.decode(made[1 : -len(alone) + 1])
        assert text == "\n\n--- snippet ---\n\n x = 1\n\n--- snippet ---\n\ny"


# What is cut


def test_with_room_nothing_is_cut(infilling):
    made = infilling.assemble("a" * 50, "b" * 50, max_tokens=PLENTY, files=[InfillFile("f", "c")])
    assert (made.num_cut_prefix, made.num_cut_suffix, made.num_cut_files) == (0, 0, 0)


@given(
    prefix=texts,
    suffix=texts,
    files=st.lists(st.builds(InfillFile, st.sampled_from(["a.py", ""]), texts), max_size=3),
    max_tokens=st.integers(0, 80),
    order=st.sampled_from(InfillOrder),
)
@with_vocabulary
def test_what_is_cut_is_far_from_the_gap_and_counted(
    infilling, prefix, suffix, files, max_tokens, order
):
    order = order if order in infilling.orders else infilling.order
    whole = infilling.assemble(prefix, suffix, max_tokens=PLENTY, order=order).token_ids
    try:
        made = infilling.assemble(prefix, suffix, max_tokens=max_tokens, files=files, order=order)
    except InvalidInfillingError:
        assert max_tokens < 6  # BOS, three pieces, one of text
        return
    assert len(made.token_ids) <= max_tokens
    num_cut = made.num_cut_prefix + made.num_cut_suffix
    if num_cut:
        # Files have gone before, and all the room is used.
        every = infilling.assemble(prefix, suffix, max_tokens=PLENTY, files=files, order=order)
        assert (made.num_cut_files > 0) == bool(files)
        assert len(every.token_ids) > max_tokens == len(made.token_ids)
        assert len(made.token_ids) == len(whole) - num_cut
    # What is left of prefix and suffix is what stood nearest to the gap.
    kept = infilling.assemble(prefix, suffix, max_tokens=len(whole) - num_cut, order=order)
    assert made.token_ids[len(made.token_ids) - len(kept.token_ids) + 1 :] == kept.token_ids[1:]


@pytest.mark.parametrize("name", ["codellama", "starcoder", "codestral"])
def test_of_both_parts_what_is_near_the_gap_is_kept(name, request):
    infilling = request.getfixturevalue(f"{name}_infilling")
    prefix = "".join(f"before{n}\n" for n in range(100))
    suffix = "".join(f"\nbehind{n}" for n in range(100))
    whole = infilling.assemble(prefix, suffix, max_tokens=PLENTY)
    made = infilling.assemble(prefix, suffix, max_tokens=200)
    before = infilling.assemble(prefix, "", max_tokens=PLENTY).token_ids
    assert len(made.token_ids) == 200
    assert made.num_cut_prefix + made.num_cut_suffix == len(whole.token_ids) - 200
    # Three quarters of the room are the prefix's.
    num_text = len(before) - sum(i in infilling.stop_token_ids or i == 1 for i in before)
    num_prefix = num_text - made.num_cut_prefix
    assert 3 * 190 // 4 <= num_prefix <= 3 * 200 // 4
    tail, head = prefix[-20:], suffix[:20]
    text = infilling_text(request, name, made.token_ids)
    assert tail in text
    assert head in text
    assert "before0\n" not in text
    assert "behind99" not in text


def infilling_text(request, name, token_ids) -> str:
    fixture = {"codellama": "codellama_of_json"}.get(name, name)
    return request.getfixturevalue(fixture).decode(token_ids)


def test_of_files_the_last_are_kept_and_of_one_the_end(qwen_infilling, qwen_coder):
    files = [InfillFile(f"{n}.py", "x = 1\n" * 20) for n in range(5)]
    every = qwen_infilling.assemble("p", "s", max_tokens=PLENTY, files=files)
    made = qwen_infilling.assemble("p", "s", max_tokens=len(every.token_ids) - 150, files=files)
    text = qwen_coder.decode(made.token_ids)
    assert made.num_cut_files == 150  # all 104 of the first, and 46 of the second
    assert len(made.token_ids) == len(every.token_ids) - 150
    assert "0.py" not in text
    assert "<|file_sep|>1.py\n" in text
    assert text.endswith(
        f"<|file_sep|>4.py\n{files[4].text}<|file_sep|>filename\n"
        "<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )


def test_without_room_for_any_text_it_is_refused(infilling):
    with pytest.raises(InvalidInfillingError, match="no room") as refusal:
        infilling.assemble("a", "b", max_tokens=3)
    assert isinstance(refusal.value, InvalidTextError)
    empty = infilling.assemble("", "", max_tokens=4)
    assert len(empty.token_ids) <= 4


# What ends the middle, and what is told


def test_the_middle_ends_at_the_familys_end_pieces_and_at_all_that_begins_another(
    codellama_infilling, deepseek_infilling, starcoder_infilling, qwen_infilling
):
    assert codellama_infilling.stop_token_ids == {32007, 32008, 32009, 32010, 2}
    assert deepseek_infilling.stop_token_ids == {32014, 32015, 32016, 32017, 32021}
    assert starcoder_infilling.stop_token_ids == {0, 1, 2, 3, 4, 5, 6}
    assert qwen_infilling.stop_token_ids == {151643, *range(151659, 151665)}


def test_codestral_and_codegemma_end_at_theirs(
    codestral_infilling, codestral, codegemma_infilling, codegemma
):
    ends = ids_of(codestral, "</s>", "[MIDDLE]", "[PREFIX]", "[SUFFIX]")
    assert codestral_infilling.stop_token_ids == ends
    assert ids_of(codegemma, "<|file_separator|>", "</s>") < codegemma_infilling.stop_token_ids


def test_the_record_tells_what_a_client_must_know(codellama_infilling, qwen_infilling):
    assert codellama_infilling.record == {
        "family": "CodeLlama",
        "orders": ["psm", "spm"],
        "default_order": "psm",
        "stop": ["</s>", "▁<EOT>", "▁<MID>", "▁<PRE>", "▁<SUF>"],
        "file_pieces": False,
    }
    assert qwen_infilling.record["file_pieces"] is True
    assert json.loads(json.dumps(qwen_infilling.record)) == qwen_infilling.record


def test_pieces_without_a_row_in_the_model_are_not_waited_for(starcoder):
    facts = VariantFacts(repo="starcoder", model_type="gpt_bigcode", vocab_size=5)
    infilling = resolve_infilling(starcoder, facts)
    assert infilling.stop_token_ids == {0, 1, 2, 3, 4}
    assert not infilling.has_file_pieces


def test_a_variant_that_cannot_is_refused_with_a_reason_and_what_works(small):
    facts = VariantFacts(repo="owner/name", model_type="llama")
    with pytest.raises(InfillingNotSupportedError) as refusal:
        resolve_infilling(small, facts)
    assert str(refusal.value).startswith("owner/name cannot infill: its tokenizer has no pieces")
    assert "/v1/completions without a suffix" in str(refusal.value)


# The order that an operator asks for


@pytest.mark.parametrize(("asked", "order"), [(None, PSM), ("psm", PSM), ("spm", SPM)])
def test_the_order_that_is_asked_for_is_the_default(starcoder, asked, order):
    facts = VariantFacts(repo="starcoder", model_type="gpt_bigcode")
    infilling = resolve_infilling(starcoder, facts, asked)
    assert (infilling.order, infilling.record["default_order"]) == (order, order.value)
    assert infilling.orders == (PSM, SPM)
    made = infilling.assemble("a", "b", max_tokens=PLENTY)
    assert made == infilling.assemble("a", "b", max_tokens=PLENTY, order=order)
    assert infilling.stop_token_ids == resolve_infilling(starcoder, facts).stop_token_ids


def test_an_order_that_the_family_has_not_is_refused_with_those_it_has(codestral):
    facts = VariantFacts(repo="owner/Codestral-22B", model_type="mistral")
    told = "infill_order is 'psm', but Codestral models infill in the order 'spm' alone; choose"
    with pytest.raises(InfillSettingError, match=told):
        resolve_infilling(codestral, facts, "psm")
    assert resolve_infilling(codestral, facts, "spm").order is SPM


def test_an_order_for_a_variant_that_cannot_infill_is_refused_with_the_reason(small):
    facts = VariantFacts(repo="owner/name", model_type="llama")
    told = "infill_order is 'spm', but owner/name cannot infill: .* leave infill_order at 'auto'"
    with pytest.raises(InfillSettingError, match=told):
        resolve_infilling(small, facts, "spm")
