"""Answers in JSON whose tokens run out: whatever is picked, they can be read and follow the schema.

Tokens are picked at random of what the masks allow, marks more often than they are.
"""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from service.grammars.json_schema import schema_grammar
from service.worker import timely_end
from service.worker.grammars import GrammarFactory

END = 1
STRING = {"type": "string"}


@pytest.fixture(scope="module")
def factory(tiny_tokenizer):
    return GrammarFactory(tiny_tokenizer)


def of(*names, value=STRING, required=None, **more):
    properties = dict.fromkeys(names, value) | more
    return {
        "type": "object",
        "properties": properties,
        "required": list(names) if required is None else required,
    }


def lists_of(items, **more):
    return {"type": "array", "items": items, **more}


def allowed(mask):
    return [i for i in range(len(mask) * 8) if mask[i >> 3] >> (i & 7) & 1]


def shortest_end(constraint):
    return constraint._end._ending.find(constraint._matcher, constraint._end._place, 192)


def answer(constraint, max_tokens, chance, marks):
    """Pick tokens at random, with the forced ones as drafts now and then."""
    tokens = []
    while len(tokens) < max_tokens and not constraint.is_complete:
        draft = constraint.forced(chance.choice([0, 0, max_tokens - len(tokens) - 1]))
        for place, mask in enumerate(constraint.next_masks(draft)):
            may = allowed(mask)
            assert may, constraint.failure
            liked = [token_id for token_id in may if token_id in marks]
            picked = chance.choice(liked if liked and chance.random() < 0.5 else may)
            if picked == END:
                return tokens
            tokens.append(picked)
            constraint.advance(picked)
            if draft[place : place + 1] != [picked]:
                break
    return tokens


TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": of("label", children=lists_of({"$ref": "#/$defs/tree"}), id={"type": "integer"})
    },
}
TREE["$defs"]["tree"]["required"] += ["children", "id"]
SCHEMAS = {
    "list": {"type": "array"},
    "anything": {},
    "any object": {"type": "object"},
    "objects with a list": lists_of(of("name", "city", tags=lists_of(STRING))),
    "six strings": lists_of(of("name", "city", "street", "country", "mail", "phone")),
    "one string": lists_of(of("a")),
    "optional properties": lists_of(of("name", "city", "x y", required=[])),
    "required behind optional": of("a", "born_in_the_year", "city", required=["city"]),
    "large behind a name": of(
        small=lists_of(of("a")), kind=lists_of(of("one", "two", "three", "four"))
    ),
    "names as they like": {**of(big=of("one", "two", "three")), "additionalProperties": STRING},
    "lists in lists": lists_of(lists_of(lists_of(of("a", "b")))),
    "least lengths": lists_of(lists_of({"type": "string", "minLength": 5}, minItems=2)),
    "numbers": lists_of({"type": "number"}),
    "bounded numbers": lists_of(of("n", value={"type": "integer", "minimum": 100, "maximum": 999})),
    "enum": lists_of({"enum": ["red", "the colour of the sea", 7, None, {"a": [1, 2, 3]}]}),
    "either": lists_of({"anyOf": [STRING, of("one", "two", "three"), {"type": "null"}]}),
    "pattern": lists_of({"type": "string", "pattern": "^(a|b[0-9]{9})$"}),
    "formats": lists_of({"type": "string", "format": "date-time"}),
    "tree": TREE,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_with_room_for_an_end_comes_to_one(factory, tiny_tokenizer, name):
    schema, chance = SCHEMAS[name], random.Random(name)
    grammar = schema_grammar(schema)
    marks = set(tiny_tokenizer.encode('{}[]",:\\ 0123', add_special_tokens=False))
    marks |= {token_id for token_id in range(500) if '"' in tiny_tokenizer.decode([token_id])}
    needed = len(shortest_end(factory.compile(grammar, [END], 192)))
    validator = jsonschema.Draft202012Validator(schema)
    for max_tokens in [*range(max(1, needed), needed + 24), 2 * needed + 30, 190, 230]:
        constraint = factory.compile(grammar, [END], max_tokens)
        tokens = answer(constraint, max_tokens, chance, marks)
        text = tiny_tokenizer.decode(tokens)
        assert validator.is_valid(json.loads(text)), (max_tokens, text)


def test_what_does_not_fit_is_not_opened_and_what_fits_may_come(factory, tiny_tokenizer):
    grammar = schema_grammar(lists_of(of("name", "city")))
    (opening,) = tiny_tokenizer.encode("{", add_special_tokens=False)
    begin = tiny_tokenizer.encode("[", add_special_tokens=False)

    def may_open(max_tokens):
        constraint = factory.compile(grammar, [END], max_tokens)
        constraint.advance(begin[0])
        is_allowed = opening in allowed(constraint.next_masks(())[0])
        assert constraint.was_cut != is_allowed  # what would have come is not known
        return is_allowed

    whole = factory.compile(grammar, [END], 192)
    for token_id in (*begin, opening):
        whole.advance(token_id)
    needed = len(begin) + 1 + len(shortest_end(whole))
    assert not may_open(needed - 1)
    assert may_open(needed)


def test_an_answer_that_just_fits_is_let_through(factory, tiny_tokenizer):
    text = '[{"name": "Ada", "city": "London"}, {"name": "Kurt", "city": "Wien"}]'
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False)
    grammar = schema_grammar(lists_of(of("name", "city")))
    constraint = factory.compile(grammar, [END], len(tokens))
    for token_id in tokens:
        assert token_id in allowed(constraint.next_masks(())[0])
        constraint.advance(token_id)
    assert constraint.is_complete


def test_a_mask_behind_a_draft_counts_the_draft_and_tells_of_no_cut_by_itself(
    factory, tiny_tokenizer
):
    grammar = schema_grammar(lists_of(of("name", "city")))
    begin = tiny_tokenizer.encode("[{", add_special_tokens=False)
    behind = factory.compile(grammar, [END], 60)
    for token_id in begin:
        behind.advance(token_id)
    draft = list(behind.forced(30))
    masks = behind.next_masks(draft)
    for place, token_id in enumerate(draft):
        assert masks[place] == behind.next_masks(())[0]
        behind.advance(token_id)
    assert masks[-1] == behind.next_masks(())[0]
    assert not behind.was_cut


def test_what_is_known_of_a_grammar_serves_the_next_and_stays_small(factory, tiny_tokenizer):
    grammar = schema_grammar({"type": "object"})
    known = factory._costs.of(grammar)
    known.clear()
    marks = set(tiny_tokenizer.encode('{}":, ', add_special_tokens=False))
    for seed in range(12):
        constraint = factory.compile(grammar, [END], 150)
        answer(constraint, 150, random.Random(seed), marks)
    assert 0 < len(known) <= timely_end._MAX_PLACES
    assert all(len(costs) <= 12 for costs in known.values())  # whole numbers as long as masks
    before = dict(known)
    answer(factory.compile(grammar, [END], 150), 150, random.Random(11), marks)
    assert known == before


def test_few_grammars_costs_are_kept():
    costs = timely_end.CostsOfGrammars()
    first = costs.of("0")
    for number in range(timely_end._MAX_GRAMMARS):
        assert costs.of(str(number)) is costs.of(str(number))
    assert costs.of("0") is first
    costs.of("another")
    costs.of("and another")
    assert costs.of("0") is first
    assert len(costs._by_grammar) == timely_end._MAX_GRAMMARS
