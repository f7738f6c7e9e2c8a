"""Random schemas: what is written follows the one that was sent; what could be followed still can.

`jsonschema_rs` judges the texts, the library itself which schemas it could follow as they are.
"""

from __future__ import annotations

import json
import random

import jsonschema_rs
import pytest
from llguidance import LLMatcher

from service.grammars.errors import InvalidGrammarError
from service.grammars.json_schema import schema_grammar
from service.grammars.limits import PARSER_LIMITS

SEEDS = range(12)
SCHEMAS_A_SEED = 25
MAX_TOKENS = 200
NAMES = "abc"
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SIMPLE = [
    *({"type": one} for one in ("integer", "null", "boolean", ["integer", "null"])),
    *({"const": one} for one in ("x", {"a": 1, "b": 2})),
    *({"$ref": f"#/$defs/{name}"} for name in NAMES),
    {"enum": [{"a": 1}, {"a": 1, "b": 1}, 5]},
    {},
    {"type": "integer", "minimum": 3},
    {"type": "number", "maximum": 10},
    {"maximum": 2**60 + 1},
    {"type": "integer", "exclusiveMinimum": 2**61 + 1},
]
TYPES = ["object", ["object", "null"], ["object", "integer"]]


def random_schema(seeded: random.Random, depth: int) -> dict[str, object]:
    """Return a schema that is mostly about objects, and that joins parts."""

    def is_so(chance: float) -> bool:
        return seeded.random() < chance

    def part() -> dict[str, object]:
        return random_schema(seeded, depth - 1)

    if depth <= 0 or is_so(0.25):
        return seeded.choice(SIMPLE)
    words: dict[str, object] = {}
    if is_so(0.5):
        words["type"] = seeded.choice(TYPES)
    if is_so(0.7):
        words["properties"] = {name: part() for name in NAMES if is_so(0.5)}
    if is_so(0.4):
        words["required"] = [name for name in NAMES if is_so(0.5)]
    if is_so(0.1):
        words["additionalProperties"] = seeded.choice([True, False, {"type": "integer"}])
    if is_so(0.08):
        words["patternProperties"] = {"^a": part()}
    if is_so(0.1):
        words["items"] = part()
    for keyword in ("anyOf", "oneOf", "allOf"):
        if is_so(0.2):
            words[keyword] = [part() for _ in range(seeded.choice([1, 2, 2, 3]))]
    if is_so(0.25):
        words["$ref"] = seeded.choice(["#", "#/$defs/a", "#/$defs/b", "#/$defs/c"])
    shuffled = list(words.items())
    seeded.shuffle(shuffled)
    return dict(shuffled)


def written(followed, seeded: random.Random, grammar: str) -> str | None:
    """Pick tokens at random, as often as not those that JSON is made of; None if it has no end."""
    backend, tokenizer = followed
    end = backend.token_to_id("</s>")
    usual = {backend.token_to_id(one) for one in 'Ġabcx"{}[]:,0123'}
    matcher = LLMatcher(tokenizer, grammar, limits=PARSER_LIMITS, log_level=0)
    text = b""
    for _ in range(MAX_TOKENS):
        mask = matcher.compute_bitmask() if not matcher.is_stopped() else b""
        allowed = [i for i in range(8 * len(mask)) if mask[i >> 3] >> (i & 7) & 1 and i != end]
        if not allowed or (matcher.is_accepting() and seeded.random() < 0.5):
            return text.decode(errors="replace")
        likely = [one for one in allowed if one in usual]
        picked = seeded.choice(likely if likely and seeded.random() < 0.9 else allowed)
        assert matcher.consume_token(picked)
        text += tokenizer.decode_bytes([picked])
    return None


def refusal(followed, make, schema) -> str | None:
    """Return why a schema cannot be followed, if it cannot."""
    try:
        grammar = make(schema)
    except (ValueError, InvalidGrammarError) as error:
        return str(error)
    matcher = LLMatcher(followed[1], grammar, limits=PARSER_LIMITS, log_level=0)
    return matcher.get_error() if matcher.is_error() else None


def unchanged(schema: object) -> str:
    """Return a grammar of a schema as it was sent."""
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=FORM)


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_follow_the_schema_that_was_sent_and_none_is_refused_for_being_narrowed(
    followed, seed
):
    seeded = random.Random(seed)
    num_texts = 0
    for _ in range(SCHEMAS_A_SEED):
        definitions = {name: random_schema(seeded, 2) for name in NAMES}
        schema = {**random_schema(seeded, 3), "$defs": definitions}
        refused = refusal(followed, schema_grammar, schema)
        if refused is not None:
            assert refusal(followed, unchanged, schema) is not None, (json.dumps(schema), refused)
            continue
        judge = jsonschema_rs.validator_for(schema)
        for _ in range(4):
            text = written(followed, seeded, schema_grammar(schema))
            if text is not None:
                judge.validate(json.loads(text))
                num_texts += 1
    assert num_texts > SCHEMAS_A_SEED  # most schemas can be followed, or nothing was tested
