"""Special pieces in texts that a grammar demands are spelt as text, in every vocabulary."""

from __future__ import annotations

import json
import random
import re
import time
from functools import cache
from pathlib import Path

import pytest
from llguidance import LLMatcher, LLTokenizer

from engine.errors import InvalidConstraintError
from loaders.demo.source import read_source
from loaders.gguf.files import open_files
from loaders.gguf.tokenizer import make_tokenizer
from service.grammars.json_schema import schema_grammar
from service.grammars.wanted import TextForm, TextFormKind
from service.text.control_pieces import ControlPieces
from service.worker.grammar_pieces import GrammarPieces
from service.worker.grammars import GrammarFactory
from tests.models import tiny_tokenizer

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
NAMES = ["tiny", "demo", "llama-spm", "qwen2", "starcoder", "deepseek-coder"]
MOST_PIECES = 5  # of one vocabulary


@cache
def read_tokenizer(name):
    if name == "tiny":
        return tiny_tokenizer()
    if name == "demo":
        return read_source().tokenizer
    path = SHARED / f"ggml-vocab-{name}.gguf"
    return make_tokenizer(dict(open_files(path).metadata), {"max_position_embeddings": 4096})


class Vocabulary:
    def __init__(self, name):
        self.tokenizer = read_tokenizer(name)
        self.factory = GrammarFactory(self.tokenizer)
        self.plain = LLTokenizer(self.tokenizer.backend_tokenizer.to_str())
        pieces = GrammarPieces(self.tokenizer.backend_tokenizer).ids
        chosen = random.Random(1).sample(sorted(pieces), min(len(pieces), MOST_PIECES))
        self.pieces = {piece: pieces[piece] for piece in chosen}
        self.special_ids = set(pieces.values())

    def answers(self, grammar):
        """Follow a grammar: with drafts of what it demands and without, by chance or not."""
        for seed in (None, 1):
            for has_drafts in (False, True):
                constraint = self.factory.compile(grammar, [], None)
                chance = random.Random(seed)
                ids = []
                while not constraint.is_complete and constraint.failure is None:
                    forced = tuple(constraint.forced(8)) if has_drafts else ()
                    masks = constraint.next_masks(forced)
                    for token_id, mask in zip(forced, masks, strict=False):
                        assert allowed(mask) == [token_id]
                    may = allowed(masks[-1])
                    last = [may[0] if seed is None else chance.choice(may)] if may else []
                    for token_id in (*forced, *last):
                        ids.append(token_id)
                        constraint.advance(token_id)
                        if constraint.is_complete:
                            break
                assert constraint.failure is None
                yield ids


def allowed(mask):
    return [i for i in range(len(mask) * 8) if mask[i >> 3] >> (i & 7) & 1]


@pytest.fixture(scope="module", params=NAMES)
def vocabulary(request):
    if request.param not in ("tiny", "demo"):
        path = SHARED / f"ggml-vocab-{request.param}.gguf"
        if not path.is_file():
            pytest.skip(f"needs the vocabulary {path.name}, which is not beside the checkout")
    return Vocabulary(request.param)


def choice(*texts):
    return TextForm(TextFormKind.CHOICE, "x", texts=texts).grammar()


def regex(pattern):
    return TextForm(TextFormKind.REGEX, "x", texts=[pattern]).grammar()


def calling(name, value):
    """A turn of one call, as tools' grammars have it."""
    schema = {"type": "object", "properties": {"at": {"enum": [value]}}, "required": ["at"]}
    (part,) = json.loads(schema_grammar(schema))["grammars"]
    before = json.dumps('{"' + name + '": ', ensure_ascii=False)
    start = f'start: {before} @arguments "}}"'
    parts = [{"name": "turn", "lark_grammar": start}, {**part, "name": "arguments"}]
    return json.dumps({"grammars": parts})


FORMS = {
    "choice of one": lambda p: (choice(p), {p}),
    "within a text": lambda p: (choice(f"a{p}b"), {f"a{p}b"}),
    "choice": lambda p: (choice(f"a{p}", f"b{p}"), {f"a{p}", f"b{p}"}),
    "pattern": lambda p: (regex(f"x?/{re.escape(p)}/?"), None),
    "const": lambda p: (schema_grammar({"const": f"a{p}b"}), {f'"a{p}b"'}),
    "enum of one": lambda p: (schema_grammar({"enum": [p]}), {f'"{p}"'}),
    "property": lambda p: (
        schema_grammar({"type": "object", "properties": {p: {"const": 1}}, "required": [p]}),
        {f'{{"{p}": 1}}'},
    ),
    "call": lambda p: (calling(p, f"{p} {p}"), {f'{{"{p}": {{"at": "{p} {p}"}}}}'}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_special_piece_in_a_text_that_is_demanded_is_spelt_as_text(vocabulary, form):
    for piece in vocabulary.pieces:
        grammar, texts = FORMS[form](piece)
        for ids in vocabulary.answers(grammar):
            text = vocabulary.plain.decode_bytes(ids).decode()
            if texts is None:
                assert re.fullmatch(f"x?/{re.escape(piece)}/?", text), piece
            else:
                assert text in texts, piece
            assert not vocabulary.special_ids & {*ids}


def test_what_is_demanded_is_spelt_as_the_tokenizer_spells_what_is_typed(vocabulary):
    typed = ControlPieces.of(vocabulary.tokenizer)
    for text in (
        "hello world, how are you?",
        "const x = [1, 22];",
        "größer als 日本",
        " a  b\n\n\tc",
    ):
        for ids in vocabulary.answers(choice(text)):
            assert vocabulary.plain.decode_bytes(ids).decode() == text
            spelt = typed.encode_typed("x" + text)[len(typed.encode_typed("x")) :]
            if vocabulary.plain.decode_bytes(spelt) == text.encode():
                assert ids == spelt


def test_as_much_is_forced_as_where_pieces_are_found_in_texts(vocabulary):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "likes": {"enum": ["tea", "coffee"]}},
        "required": ["name", "likes"],
    }
    grammar = schema_grammar(schema)
    constraint = vocabulary.factory.compile(grammar, [], None)
    matcher = LLMatcher(vocabulary.plain, grammar)
    said = vocabulary.plain.tokenize_str('{"name": "Ada", "likes": "coffee"}')
    num_forced = 0
    for token_id in said:
        matcher.compute_bitmask()
        constraint.next_masks(())
        forced = list(constraint.forced(20))
        num_forced += len(forced)
        assert forced == matcher.compute_ff_tokens()
        chosen = forced[0] if forced else token_id
        if not matcher.validate_tokens([chosen]):
            break
        matcher.consume_token(chosen)
        constraint.advance(chosen)
    assert num_forced > 3


def test_a_piece_that_a_grammar_names_is_meant_as_the_piece(vocabulary):
    for piece, token_id in vocabulary.pieces.items():
        if not re.fullmatch(r"<[^<>\s]+>", piece) or token_id == vocabulary.tokenizer.eos_token_id:
            continue  # no grammar can name it, or it ends the text
        named = f'start: "a" {piece} "{piece}" // {piece}'
        grammar = TextForm(TextFormKind.GRAMMAR, "x", texts=[named]).grammar()
        for told in (grammar, json.dumps({"grammars": [{"lark_grammar": grammar}]})):
            for ids in vocabulary.answers(told):
                assert ids.count(token_id) == 1
                (place,) = (n for n, each in enumerate(ids) if each == token_id)
                assert vocabulary.plain.decode_bytes(ids[:place]) == b"a"
                assert vocabulary.plain.decode_bytes(ids[place + 1 :]).decode() == piece


def test_a_piece_that_is_not_there_is_told_and_no_other_is():
    factory = GrammarFactory(tiny_tokenizer())
    with pytest.raises(InvalidConstraintError, match=r"a piece '<\|nope\|>' that the voc.*$") as it:
        factory.compile("start: <|nope|>", [], None)
    assert "im_end" not in str(it.value)


@pytest.mark.parametrize(
    "text", ['"' + r"\"" * 60_000, '"\n' * 60_000, "/" * 120_000, "<" * 120_000]
)
def test_names_are_found_in_a_moment_whatever_the_grammar_is(text):
    pieces = GrammarPieces(tiny_tokenizer().backend_tokenizer)
    began = time.process_time()
    assert pieces.by_id("start: " + text) == "start: " + text
    assert time.process_time() - began < 1


def test_without_an_end_token_no_ordinary_one_is_taken_for_it():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    constraint = GrammarFactory(tokenizer).compile(regex("(.|\n)*"), [], None)
    (mask,) = constraint.next_masks(())
    special = {*GrammarPieces(tokenizer.backend_tokenizer).ids.values()}
    ordinary = {*range(len(tokenizer))} - special
    assert {i for i in ordinary if tokenizer.decode([i]).isascii()} <= {*allowed(mask)}
    assert not special & {*allowed(mask)}
