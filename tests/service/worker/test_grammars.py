"""Grammars followed token by token: masks, drafts, ends, and answers that end in time."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from engine.constraint import ALLOWS_NOTHING
from engine.errors import InvalidConstraintError
from service.grammars.json_schema import ANY_OBJECT, schema_grammar
from service.grammars.wanted import TextForm, TextFormKind
from service.tools.calls import Tool, ToolMode, ToolUse
from service.tools.formats import HERMES, LLAMA3, MISTRAL, MISTRAL_BY_NAME
from service.tools.pieces import Pieces
from service.tools.turn_form import form_of_calls
from service.tools.turn_grammar import Thoughts
from service.tools.whole_turn import read_whole
from service.worker import grammars
from service.worker.grammars import GrammarFactory
from service.worker.kept_grammars import MAX_KEPT
from tests.service.fakes import ByteTokenizer
from tests.service.tools.in_sum import in_sum, read

END = 1
INTEGER = schema_grammar({"type": "integer"})
PAIR = schema_grammar(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def regex(pattern):
    return TextForm(TextFormKind.REGEX, "x", texts=[pattern]).grammar()


@pytest.fixture(scope="module")
def factory(tiny_tokenizer):
    return GrammarFactory(tiny_tokenizer)


@pytest.fixture
def ids(tiny_tokenizer):
    return lambda text: tiny_tokenizer.encode(text, add_special_tokens=False)


def allowed(mask):
    return {i for i in range(len(mask) * 8) if mask[i >> 3] >> (i & 7) & 1}


def test_masks_allow_what_the_grammar_does_and_the_end_where_it_may_end(factory, ids):
    constraint = factory.compile(regex("ab*"), [END], 100)
    (mask,) = constraint.next_masks(())
    assert ids("a")[0] in allowed(mask)
    assert not {ids("b")[0], END} & allowed(mask)
    constraint.advance(ids("a")[0])
    (mask,) = constraint.next_masks(())
    assert {ids("b")[0], END} <= allowed(mask)
    assert ids("a")[0] not in allowed(mask)
    assert not constraint.is_complete


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-z ]{1,40}",
        "[A-Za-z0-9 ,.]{40}",
        "[^x]{1,40}",
        "[a-f]{3}[A-Z0-9]*",
        "[b-z ]{1,9}",
        "\\w+",
    ],
)
def test_the_parts_in_which_a_vocabulary_is_read_change_no_mask(factory, tiny_tokenizer, pattern):
    grammar = regex(pattern)
    constraint = factory.compile(grammar, [], None)
    plain = LLTokenizer(tiny_tokenizer.backend_tokenizer.to_str(), eos_token=END, slices=[])
    matcher = LLMatcher(plain, grammar)
    chance = random.Random(pattern)
    for _ in range(6):
        (mask,) = constraint.next_masks(())
        ends = {END} if matcher.is_accepting() else set()  # banned: no id was said to end it
        assert allowed(mask) == allowed(matcher.compute_bitmask()) - ends
        if constraint.is_complete or not allowed(mask):
            break
        token_id = chance.choice(sorted(allowed(mask)))
        constraint.advance(token_id)
        assert matcher.consume_token(token_id)


def test_every_id_that_ends_a_sequence_may_end_the_text(factory, ids):
    constraint = factory.compile(regex("a?"), [END, 3, 100_000], 100)
    (mask,) = constraint.next_masks(())
    assert {END, 3} <= allowed(mask)


def test_each_character_of_a_choice_may_come(factory, ids):
    text = "".join(map(chr, range(1, 256)))
    choice = TextForm(TextFormKind.CHOICE, "x", texts=[text, "b"]).grammar()
    constraint = factory.compile(choice, [END], 1000)
    for token_id in ids(text):
        constraint.advance(token_id)
    assert constraint.failure is None
    assert constraint.is_complete


def test_nothing_else_ends_a_text(factory, ids):
    constraint = factory.compile(regex("ab*"), [], 100)
    constraint.advance(ids("a")[0])
    assert allowed(constraint.next_masks(())[0]) == {ids("b")[0]}
    constraint = factory.compile(regex("ab*"), [3], 100)
    constraint.advance(ids("a")[0])
    assert allowed(constraint.next_masks(())[0]) == {ids("b")[0], 3}


def test_text_that_nothing_may_follow_is_complete(factory, ids):
    constraint = factory.compile(regex("ab"), [END], 100)
    for token_id in ids("ab"):
        assert not constraint.is_complete
        constraint.advance(token_id)
    assert constraint.is_complete


def test_a_draft_gets_a_mask_a_token_and_leaves_no_trace(factory, ids):
    constraint = factory.compile(PAIR, [END], 100)
    draft = ids('{"name": "x')
    constraint.next_masks(())  # as behind every prompt
    assert constraint.num_allowed(draft) == len(draft)
    masks = constraint.next_masks(draft)
    assert len(masks) == len(draft) + 1
    for token_id, mask in zip(draft, masks, strict=False):
        assert token_id in allowed(mask)
    (again,) = constraint.next_masks(())
    assert again == masks[0]
    for token_id, mask in zip(draft, masks, strict=False):
        assert constraint.next_masks(()) == [mask]
        constraint.advance(token_id)


def test_a_draft_is_allowed_up_to_the_first_token_that_is_not(factory, ids):
    constraint = factory.compile(PAIR, [END], 100)
    draft = [*ids('{"'), *ids("!!")]
    constraint.next_masks(())  # as behind every prompt
    assert constraint.num_allowed(draft) == len(ids('{"'))
    assert constraint.num_allowed(()) == 0


def test_what_the_grammar_demands_is_forced(factory, tiny_tokenizer):
    constraint = factory.compile(PAIR, [END], 100)
    forced = constraint.forced(4)
    assert 0 < len(forced) <= 4
    assert '{"name": "'.startswith(tiny_tokenizer.decode(forced))


@pytest.mark.parametrize("form", ["choice", "pattern"])
def test_a_very_long_text_is_not_spelt_ahead_until_little_of_it_is_left(factory, ids, form):
    text = "ab" * grammars.MAX_FORCED_BYTES
    grammar = {
        "choice": TextForm(TextFormKind.CHOICE, "x", texts=[text]).grammar(),
        "pattern": regex(f"((ab){{{grammars.MAX_FORCED_BYTES}}})"),
    }[form]
    constraint = factory.compile(grammar, [END], None)
    told = ids(text)
    for place, token_id in enumerate(told):
        forced = constraint.forced(8)
        if place < len(told) // 2 - 10:
            assert not forced
        elif place > len(told) // 2 + 10:
            assert list(forced) == told[place : place + 8]
        constraint.advance(token_id)
    assert constraint.is_complete


def test_what_a_small_pattern_demands_without_end_is_not_spelt_ahead(factory):
    grammar = LLMatcher.grammar_from_regex("((a{1000}){1000}){700}")  # no server would take it
    constraint = factory.compile(grammar, [END], None)
    began = time.thread_time()
    assert not constraint.forced(8)
    assert time.thread_time() - began < 0.005


def test_a_token_that_may_not_come_is_told_and_allows_nothing_from_there(factory, ids):
    constraint = factory.compile(regex("a"), [END], 100)
    constraint.advance(ids("b")[0])
    assert constraint.failure is not None
    assert constraint.next_masks(ids("a")) == [ALLOWS_NOTHING, ALLOWS_NOTHING]
    assert not constraint.is_complete


def test_sequences_of_one_grammar_do_not_disturb_each_other(factory, ids):
    one, other = factory.compile(regex("ab"), [END], 9), factory.compile(regex("ab"), [END], 9)
    one.advance(ids("a")[0])
    (mask,) = other.next_masks(())
    assert ids("a")[0] in allowed(mask)


def test_a_grammar_is_read_once_while_it_is_remembered(tiny_tokenizer, monkeypatch):
    read: list[str] = []
    original = grammars._read
    monkeypatch.setattr(grammars, "_read", lambda v, text: read.append(text) or original(v, text))
    factory = GrammarFactory(tiny_tokenizer)
    factory.compile(INTEGER, [], 9)
    for n in range(MAX_KEPT - 1):
        factory.compile(regex(f"a{{{n + 1}}}"), [], 9)
        factory.compile(INTEGER, [], 9)
    assert read.count(INTEGER) == 1
    for n in range(MAX_KEPT):
        factory.compile(regex(f"b{{{n + 1}}}"), [], 9)
    factory.compile(INTEGER, [], 9)
    assert read.count(INTEGER) == 2


def test_a_grammar_that_could_not_be_followed_on_is_not_kept(tiny_tokenizer, ids, monkeypatch):
    read: list[str] = []
    original = grammars._read
    monkeypatch.setattr(grammars, "_read", lambda v, text: read.append(text) or original(v, text))
    factory = GrammarFactory(tiny_tokenizer)
    constraint = factory.compile(INTEGER, [], 9)
    factory.compile(INTEGER, [], 9)
    assert len(read) == 1
    constraint.advance(ids("x")[0])
    assert constraint.failure is not None
    factory.compile(INTEGER, [], 9)
    assert len(read) == 2


@pytest.mark.parametrize("grammar", ["nonsense", "{}", '{"grammars": []}'])
def test_what_is_no_grammar_is_refused(factory, grammar):
    with pytest.raises(InvalidConstraintError):
        factory.compile(grammar, [END], 9)


def test_several_threads_may_ask_at_once(factory, ids):
    found: list[int] = []

    def read() -> None:
        for n in range(20):
            constraint = factory.compile(regex(f"[ab]{{{n + 1}}}"), [END], 100)
            found.append(len(allowed(constraint.next_masks(())[0])))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(found)


# ── an answer in JSON ends in time ──────────────────────────────────────────────────────────────


def generate(constraint, max_tokens, choose, ends=(END,)):
    """Let a model say what it likes best of what it may."""
    tokens: list[int] = []
    while len(tokens) < max_tokens and not constraint.is_complete:
        (mask,) = constraint.next_masks(())
        chosen = choose(allowed(mask))
        if chosen in ends:
            break
        tokens.append(chosen)
        constraint.advance(chosen)
    return tokens


@pytest.mark.parametrize("max_tokens", [64, 100, 101, 300])
@pytest.mark.parametrize("letter", ["a", "0", "{", " ", ",", "[", "\\"])
def test_a_model_that_never_ends_is_led_to_an_end(factory, tiny_tokenizer, ids, letter, max_tokens):
    constraint = factory.compile(schema_grammar(ANY_OBJECT), [END], max_tokens)
    (liked,) = ids(letter)
    others = random.Random(letter)

    def choose(may):
        return liked if liked in may else others.choice(sorted(may - {END}) or [END])

    tokens = generate(constraint, max_tokens, choose)
    assert isinstance(json.loads(tiny_tokenizer.decode(tokens)), dict)


NESTED = {
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {}}},
    "required": ["city", "days"],
}


@pytest.mark.parametrize("marks", [(), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")])
@pytest.mark.parametrize("tool_format", [HERMES, LLAMA3, MISTRAL, MISTRAL_BY_NAME])
@pytest.mark.parametrize("letter", ["a", "0", "{", ",", "[", "\\", '"'])
@pytest.mark.parametrize("is_parallel", [False, True])
def test_calls_that_must_come_are_led_to_an_end(marks, tool_format, letter, is_parallel):
    tokenizer = ByteTokenizer(marks)
    tools = [Tool("weather", "", NESTED), Tool("weather_of_old", "", NESTED)]
    use = ToolUse(tools, ToolMode.REQUIRED, is_parallel=is_parallel)
    form = form_of_calls(use, tool_format, Pieces.of(tokenizer), None, None).text_form
    followed = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>"
    )
    liked, end = tokenizer.encode(letter, add_special_tokens=False)[0], followed.eos_token_id
    for max_tokens in (160, 233, 400):
        constraint = GrammarFactory(followed).compile(form.grammar(), [end], max_tokens)
        others = random.Random(letter)

        def choose(may, others=others):
            return liked if liked in may else others.choice(sorted(may - {end}) or [end])

        tokens = generate(constraint, max_tokens, choose, ends=(end,))
        written = followed.decode(tokens)
        assert constraint.was_cut or letter != "a"  # which would go on for ever
        names = [tool.name for tool in tools]
        turn = read_whole(tool_format.new_reader(names, only_calls=True), written, is_cut=True)
        assert turn.text == ""
        assert turn.calls
        assert all(isinstance(json.loads(call.arguments), dict) for call in turn.calls)
        begun = in_sum(read(tool_format.new_reader(names), [written], is_cut=True))
        # None was left in its midst, but for a further one that began too late.
        assert len(begun) - len(turn.calls) in ((0, 1) if is_parallel else (0,))


def test_text_beside_calls_is_not_led_anywhere(tiny_tokenizer, ids):
    pieces = Pieces.of(tiny_tokenizer)
    for use, thoughts in (
        (ToolUse([Tool("now")]), None),
        (ToolUse([Tool("now")], ToolMode.REQUIRED), Thoughts(("<think>", "</think>"), True)),
    ):
        form = form_of_calls(use, HERMES, pieces, thoughts, None).text_form
        constraint = GrammarFactory(tiny_tokenizer).compile(form.grammar(), [END], 40)
        for _ in range(40):
            assert ids("a")[0] in allowed(constraint.next_masks(())[0])
            constraint.advance(ids("a")[0])
        assert not constraint.was_cut


def test_an_answer_that_fits_is_not_led_anywhere(factory, tiny_tokenizer, ids):
    said = '{"name": "Ada Lovelace", "age": 36}'
    wanted = ids(said)
    constraint = factory.compile(PAIR, [END], len(wanted) + 8)
    for token_id in wanted:
        assert token_id in allowed(constraint.next_masks(())[0])
        constraint.advance(token_id)
    assert constraint.is_complete
    assert not constraint.was_cut


def test_where_no_end_can_be_reached_the_model_is_left_alone(factory, ids):
    constraint = factory.compile(PAIR, [END], 3)
    assert ids("{")[0] in allowed(constraint.next_masks(())[0])
    constraint.advance(ids("{")[0])
    constraint.next_masks(())
    assert not constraint.was_cut


def test_other_texts_than_json_are_not_ended(factory, ids):
    constraint = factory.compile(regex("a+b"), [END], 12)
    for _ in range(12):
        assert ids("a")[0] in allowed(constraint.next_masks(())[0])
        constraint.advance(ids("a")[0])
    assert not constraint.was_cut


@pytest.mark.parametrize("letter", ["1", ".", "e", "-"])
def test_a_number_alone_can_be_read_wherever_it_is_cut(factory, tiny_tokenizer, ids, letter):
    (liked,) = ids(letter)
    for max_tokens in range(1, 20):
        constraint = factory.compile(schema_grammar({"type": "number"}), [END], max_tokens)
        tokens = generate(constraint, max_tokens, lambda may: liked if liked in may else min(may))
        assert isinstance(json.loads(tiny_tokenizer.decode(tokens)), int | float)


def test_drafts_do_not_pass_the_place_from_which_the_end_is_reached(factory, tiny_tokenizer, ids):
    tree = schema_grammar({"type": "array", "items": {"$ref": "#"}})
    (opening,) = ids("[")
    for max_tokens in range(40, 72):
        constraint = factory.compile(tree, [END], max_tokens)
        tokens: list[int] = []
        while len(tokens) < max_tokens and not constraint.is_complete:
            draft = [opening] * constraint.num_allowed([opening] * 12)
            masks = constraint.next_masks(draft)
            picked = [*draft, opening]
            for place, token_id in enumerate(picked):
                may = allowed(masks[place])
                picked[place] = token_id if token_id in may else min(may)
                tokens.append(picked[place])
                constraint.advance(picked[place])
                if picked[place] != token_id:
                    break
        assert isinstance(json.loads(tiny_tokenizer.decode(tokens)), list)
        assert constraint.was_cut


def test_text_whose_tokens_may_be_banned_is_not_led_to_its_end(factory, ids):
    constraint = factory.compile(schema_grammar({"type": "string"}), [END], None)
    constraint.advance(ids('"')[0])
    for _ in range(100):
        assert ids("a")[0] in allowed(constraint.next_masks(())[0])
        constraint.advance(ids("a")[0])
    assert not constraint.was_cut
