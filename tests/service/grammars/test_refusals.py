"""What cannot be followed is told by its name, in a line, with what to do."""

from __future__ import annotations

import pytest

from service.grammars.refusals import MAX_SHOWN, in_words


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ('Unimplemented keys: ["not"]', "uses not, which cannot be followed"),
        ('Unimplemented keys: ["if", "else", "then"]', "uses if, else and then, which"),
        ("Unknown format: colour", "a format 'colour' that is not known"),
        (
            "Resource 'https://x/y' is not present in a registry and retrieving it failed",
            "refers to 'https://x/y', outside of itself; put it into $defs",
        ),
        ("regex parse error:\n  (a\n  ^\nerror: unclosed group", "cannot be read: unclosed group"),
        ("oneOf constraints are not supported. Enable 'coerce_one_of'", "use anyOf"),
        ('at 1(8): unknown name: "foo"\n 1 | start: foo', 'line 1, column 8: unknown name: "foo"'),
        (
            'at 1(8): unknown special token: "<|x|>"; following special tokens are: ⟦<y>⟧',
            "names a piece '<|x|>' that the vocabulary does not have",
        ),
        ("1(9): lexer error", "line 1, column 9: lexer error"),
        ("Unsatisfiable schema: anyOf is empty", "Unsatisfiable schema: anyOf is empty"),
        ("too much of it<state>secret</state>", "too much of it"),
        ("NoExtensionBias\n<non-verbose/>", "allows no text at all; look for parts that"),
        ("Parser Error: Current row has 2501 items; max is 2000; consider", "(2501; at most 2000)"),
        ("parser error: Too many items (limit 50000; mask); try", "as one pattern or terminal"),
        ("lexer error: fuel exhausted when checking relevance of lexemes", "do not nest them"),
        ("initial lexer configuration (grammar) too big (limit for this", "send fewer properties"),
        ("Unable to determine if regex is empty: (And (And (Regex", "join fewer patterns"),
        ("too many states: 50001", "bound its repetitions to fewer"),
        ("grammar size (number of symbols) too big (limit for", "has too many rules"),
    ],
)
def test_each_refusal_says_what_was_found(told, words):
    said = in_words(told)
    assert words in said
    assert "\n" not in said
    assert "<state>" not in said


def test_no_refusal_repeats_much_of_a_grammar():
    for told in ("x" * 10_000, f"Unknown format: {'x' * 10_000}", f"at 1(1): {'x' * 10_000}"):
        assert len(in_words(told)) < MAX_SHOWN + 150
