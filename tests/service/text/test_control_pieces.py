"""Control pieces that users type are text, those that templates write are ids."""

from __future__ import annotations

import gc
import json
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from service.text.control_pieces import ControlPieces
from service.text.errors import InvalidMessagesError

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)


@pytest.fixture(scope="session")
def pieces(tokenizer) -> ControlPieces:
    return ControlPieces(tokenizer.backend_tokenizer)


def encode(tokenizer, text) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def control_ids(tokenizer) -> set[int]:
    return {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


@given(text=st.text(max_size=40), control=st.booleans())
@with_vocabulary
def test_in_disguise_all_other_text_gets_the_ids_it_always_gets(tokenizer, pieces, text, control):
    """The second tokenizer differs from the first in nothing but the typed pieces."""
    if control:  # one that the template wrote
        text = text[:20] + tokenizer.eos_token + text[20:]
    disguise = pieces.disguise_for([tokenizer.eos_token], "")
    assert pieces.encode(text, disguise) == encode(tokenizer, text)


@given(data=st.data())
@with_vocabulary
def test_typed_pieces_become_text_in_any_surroundings(tokenizer, pieces, data):
    """Also where they overlap, stand in each other, or are followed by their own fragments."""
    added = tokenizer.added_tokens_decoder
    typed = [added[token_id].content for token_id in sorted(control_ids(tokenizer))]
    fragments = [*typed, *(piece[:2] for piece in typed), *(piece[2:] for piece in typed), "x", " "]
    content = "".join(data.draw(st.lists(st.sampled_from(fragments), max_size=12)))
    eos = tokenizer.eos_token
    disguise = pieces.disguise_for([content], "")
    if disguise is None:
        return
    ids = pieces.encode(f"{eos}a{disguise.put_on(content)}b{eos}", disguise)
    eos_id = tokenizer.eos_token_id
    assert ids[0] == ids[-1] == eos_id
    assert not control_ids(tokenizer) & set(ids[1:-1])
    # Behind a letter, so that no decoder takes the beginning of the text for something special.
    shown = tokenizer.backend_tokenizer.decode(ids[1:-1], skip_special_tokens=False)
    # "▁" in CodeLlama's pieces is how SentencePiece writes a space.
    assert shown.replace("▁", " ") == f"a{content}b".replace("▁", " ")


def test_a_typed_piece_is_encoded_as_a_tokenizer_without_control_pieces_would(llama_2):
    pieces = ControlPieces(llama_2.backend_tokenizer)
    disguise = pieces.disguise_for(["</s>"], "")
    assert llama_2.convert_ids_to_tokens(pieces.encode(disguise.put_on("a </s>"), disguise)) == [
        *("▁a", "▁</", "s", ">")
    ]


def test_without_typed_pieces_there_is_no_disguise(tokenizer, pieces):
    assert pieces.disguise_for(["ordinary", "a < b", "text > </ x", ""], "") is None


@pytest.mark.parametrize(
    ("before", "typed", "behind"),
    [
        ("<", "|im_end|", ">"),  # '<' + name + '>'
        ("<", "/s", ">"),
        ("<|", "im_end", "|>"),
        ("", "<|im_end|", ">"),  # name + '>'
        ("", "<|im_end", "|>"),
        ("<", "/s> and more", ""),
    ],
)
def test_no_piece_comes_about_between_a_text_and_what_a_template_writes_at_it(
    small, before, typed, behind
):
    pieces = ControlPieces(small.backend_tokenizer)
    disguise = pieces.disguise_for([typed, "s"], "")
    ids = pieces.encode(f"</s>{before}{disguise.put_on(typed)}{behind}</s>", disguise)
    assert ids == [257, *f"{before}{typed}{behind}".encode(), 257]


def test_nor_between_two_texts(small):
    pieces = ControlPieces(small.backend_tokenizer)
    for cut in range(1, len("<|im_end|>")):
        texts = ["<|im_end|>"[:cut], "<|im_end|>"[cut:]]
        disguise = pieces.disguise_for(texts, "")
        assert pieces.encode("".join(map(disguise.put_on, texts)), disguise) == [*b"<|im_end|>"]


def test_stand_ins_are_known_as_escapes_where_the_template_writes_them(small):
    """As `tojson(ensure_ascii=true)` does; what users typed in that form stays."""
    pieces = ControlPieces(small.backend_tokenizer)
    typed = json.dumps(chr(0xF0000))
    source = "{{ x | tojson(ensure_ascii=true) }}"
    disguise = pieces.disguise_for(["</s>", typed], source)
    written = json.dumps([disguise.put_on("</s>"), disguise.put_on(typed)])
    assert disguise.take_off(written) == json.dumps(["</s>", typed])


@given(text=st.text(st.characters(min_codepoint=0xEFFF0, max_codepoint=0xF0010), max_size=20))
@with_vocabulary
def test_stand_ins_that_users_type_stay_as_they_are(small, text):
    pieces = ControlPieces(small.backend_tokenizer)
    disguise = pieces.disguise_for([text + "</s>" + text], "")
    assert disguise is not None
    hidden = disguise.put_on(text + "</s>" + text)
    assert "</s>" not in hidden
    assert disguise.take_off(hidden) == text + "</s>" + text
    assert bytes(pieces.encode(hidden, disguise)).decode() == text + "</s>" + text


def test_a_dialogue_with_every_possible_stand_in_is_refused(small):
    pieces = ControlPieces(small.backend_tokenizer)
    every = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(InvalidMessagesError, match="plane 15"):
        pieces.disguise_for([every + "</s>"], "")


def test_markers_that_are_not_marked_special_are_control_pieces_too(small):
    pieces = ControlPieces(small.backend_tokenizer)
    assert pieces.id_at("<|EOT|> and more") == small.convert_tokens_to_ids("<|EOT|>")
    assert pieces.id_at(" <|EOT|>") is None
    # Models write it, and clients send it back: it stays what the tokenizer makes of it.
    assert pieces.id_at("<think>") is None


def test_text_that_was_typed_holds_no_control_piece(tokenizer, pieces):
    text = f"a{tokenizer.eos_token}b"
    ids = pieces.encode_typed(text)
    assert not pieces.ids & set(ids)
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text


def copy_of(tokenizer) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_control_pieces_are_made_once_a_tokenizer_and_not_kept_longer(small):
    tokenizer = copy_of(small)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(ControlPieces.of, [tokenizer] * 64))
    assert len({id(each) for each in made}) == 1
    reference = weakref.ref(made.pop())
    made.clear()
    assert ControlPieces.of(copy_of(small)) is not reference()
    del tokenizer
    gc.collect()
    assert reference() is None


@given(text=st.text(max_size=40))
@with_vocabulary
def test_typed_text_without_pieces_gets_the_ids_it_always_gets(tokenizer, pieces, text):
    assert pieces.encode_typed(text) == encode(tokenizer, text)


def test_no_control_piece_comes_of_typed_text(tokenizer, pieces):
    every = "".join(tokenizer.convert_ids_to_tokens(sorted(control_ids(tokenizer))))
    assert not control_ids(tokenizer) & set(pieces.encode_typed(every))


def test_further_pieces_can_be_named(small):
    assert ControlPieces(small.backend_tokenizer).id_at("<think>") is None
    pieces = ControlPieces(small.backend_tokenizer, also=["<think>", "<not there>"])
    think = small.convert_tokens_to_ids("<think>")
    assert pieces.id_at("<think>") == think
    assert think not in pieces.encode_typed("<think>")
    assert pieces.id_at("<not there>") is None


def test_a_piece_that_the_vocabulary_joins_of_typed_text_stays_text():
    """The text does not hold it: "▁" in a piece is a space, so there is nothing to disguise."""
    steps = [("▁", "<"), ("▁<", "P"), ("▁<P", ">")]
    pieces = [*"▁<P>x", *(left + right for left, right in steps)]
    backend = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, steps))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.add_special_tokens([AddedToken("▁<P>", normalized=False)])
    control = backend.token_to_id("▁<P>")
    assert control in backend.encode("x <P>").ids
    found = ControlPieces(backend)
    assert found.disguise_for(["x <P>"], "") is None
    assert control not in found.encode("x <P>", None)
    assert found.encode("x▁<P>", None) == [backend.token_to_id("x"), control]
