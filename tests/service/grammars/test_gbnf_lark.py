"""Grammars in GBNF allow the same texts as before they are written in Lark's notation."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from llguidance import LLMatcher

from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf_lark import lark_of_gbnf
from service.grammars.limits import MAX_SOURCE_BYTES
from tests.service.grammars.byte_matcher import matches

NUM_RANDOM = 250


def allows(grammar, text):
    return matches(LLMatcher.grammar_from_lark(lark_of_gbnf(grammar)), text)


# Random trees, how GBNF writes them, and where each may end in a text: apart from the reader.


class Grammar:
    """Rules of random trees: ("text", …), ("in", …), ("not", …), ("all", …), ("one", …), …"""

    def __init__(self, seed, *, is_recursive):
        self.chance = random.Random(seed)
        self.names = ["root", "a-1", "a_1", "A1", "start"]
        self.is_recursive = is_recursive
        self.rules = {}
        for number, name in enumerate(self.names):
            self.rules[name] = self.tree(3, self.names[number + 1 :])

    def tree(self, levels, below):
        kind = self.chance.choice(["text", "in", "not", "rule", "all", "one", "times", "deep"])
        if levels == 0 and kind in ("all", "one", "times", "deep"):
            kind = "text"
        if kind == "rule" and below:
            return ("rule", self.chance.choice(below))
        if kind == "deep" and self.is_recursive:
            # A character comes first, so that the matcher below goes on in the text.
            first, last = (
                self.chance.choice(["a", "b", "ab", "("]),
                self.chance.choice(["a", ")", ""]),
            )
            inner = ("rule", self.chance.choice(self.names))
            return ("one", [self.tree(1, below), ("all", [("text", first), inner, ("text", last)])])
        if kind in ("all", "one"):
            number = self.chance.randint(0 if kind == "all" else 2, 3)
            return (kind, [self.tree(levels - 1, below) for _ in range(number)])
        if kind == "times":
            least, most = self.chance.choice([(0, None), (1, None), (0, 1), (2, 2), (1, 3), (0, 0)])
            return ("times", self.tree(levels - 1, below), least, most)
        if kind == "text":
            return ("text", "".join(self.chance.choices("ab.é", k=self.chance.randint(0, 3))))
        return (kind if kind == "not" else "in", "".join(self.chance.sample('abc]^-\\"', 2)))

    def written(self):
        order = list(self.rules.items())
        self.chance.shuffle(order)
        return '\n# rules: "\n'.join(f"{name} ::= {self.write(tree)}" for name, tree in order)

    def write(self, tree):
        kind, of = tree[0], tree[1]
        if kind == "text":
            spelled = (self.chance.choice([one, f"\\u{ord(one):04x}"]) for one in of)
            return f'"{"".join(spelled)}"'
        if kind in ("in", "not"):
            spelled = "".join(f"\\{one}" if one in ']\\"' else f"\\x{ord(one):02x}" for one in of)
            return f"[{'^' if kind == 'not' else ''}{spelled}]"
        if kind == "rule":
            return of
        if kind in ("all", "one"):
            between = " " if kind == "all" else " |\n "
            return f"({between.join(map(self.write, of))})"
        least, most = tree[2:]
        marks = {(0, None): "*", (1, None): "+", (0, 1): "?", (2, 2): "{2}"}
        return f"({self.write(of)}){marks.get((least, most), f'{{{least},{most}}}')}"

    def ends(self, tree, text, begin, seen):
        """Return where a tree may end that begins at a place of a text."""
        kind, of = tree[0], tree[1]
        if kind == "text":
            return {begin + len(of)} if text.startswith(of, begin) else set()
        if kind in ("in", "not"):
            is_one = begin < len(text) and (text[begin] in of) == (kind == "in")
            return {begin + 1} if is_one else set()
        if kind == "rule":
            if (of, begin) not in seen:
                seen[of, begin] = self.ends(self.rules[of], text, begin, seen)
            return seen[of, begin]
        if kind == "one":
            return {end for part in of for end in self.ends(part, text, begin, seen)}
        if kind == "all":
            reached = {begin}
            for part in of:
                reached = {end for place in reached for end in self.ends(part, text, place, seen)}
            return reached
        least, most = tree[2:]
        reached, found, number = {begin}, set(), 0
        while reached and (most is None or number <= most):
            if number >= least:
                if reached <= found:
                    break
                found |= reached
            number += 1
            reached = {end for place in reached for end in self.ends(of, text, place, seen)}
        return found

    def texts(self, number):
        for _ in range(number):
            yield "".join(self.chance.choices("ab.é()c", k=self.chance.randint(0, 7)))
        for _ in range(number):
            yield self.grown(("rule", "root"), 9)[:40]

    def grown(self, tree, levels):
        """Return a text that a tree allows, for the most part."""
        kind, of = tree[0], tree[1]
        if kind == "text" or levels < 0:
            return of if kind == "text" else ""
        if kind == "in":
            return self.chance.choice(of)
        if kind == "not":
            return self.chance.choice(sorted(set("ab.é()") - set(of)))
        if kind == "rule":
            return self.grown(self.rules[of], levels - 1)
        if kind == "one":
            return self.grown(self.chance.choice(of), levels - 1)
        parts = (
            of
            if kind == "all"
            else [of] * self.chance.randint(tree[2], tree[3] or tree[2] + (tree[3] is None) * 2)
        )
        return "".join(self.grown(part, levels - 1) for part in parts)


@pytest.mark.parametrize("is_recursive", [False, True])
def test_random_grammars_allow_what_their_trees_allow(is_recursive):
    num_allowed = 0
    for seed in range(NUM_RANDOM):
        grammar = Grammar(seed, is_recursive=is_recursive)
        written = grammar.written()
        for text in set(grammar.texts(8)):
            expected = len(text) in grammar.ends(("rule", "root"), text, 0, {})
            assert allows(written, text) == expected, (seed, written, text)
            num_allowed += expected
    assert num_allowed > NUM_RANDOM


ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
LIST = r"""
root ::= item+
# no line breaks of any kind
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""


@pytest.mark.parametrize(
    ("grammar", "allowed", "refused"),
    [
        # A line's end is white space too: whoever takes it as such must give it back.
        (ARITHMETIC, ["x=1\n", "(a1 +2)*3 =y\n\n \nz=2\n"], ["x=1", "x=1\n=2\n", "1x=2\n"]),
        (
            JSON,
            ["{}\n  ", '{"a": [1, 2.5e-3, {"b":null}], "é\\u00e9\\n": "x"}'],
            ['{"a" 1}', "[1]", '{"a": "\n"}', '{"a": 1,}', '{"a": [1 2]}'],
        ),
        (LIST, ["- a\n- b c\n"], ["- a", "- a\u2028\n", "-a\n", ""]),
        (r'root ::= "\u00e9" "\u004112"', ["éA12"], ["\x0e9A12", "é\u4112"]),
        (
            'root ::= ("a"{1,2}){2,3} ("y"+)?',
            ["aa", "aaaaaa", "aayyy"],
            ["a", "aaaaaaa", "aaxx", "y"],
        ),
        # Names that would become one where case, dashes and underscores do not count.
        (
            'root ::= a-b a_b A-B start\na-b ::= "1"\na_b ::= "2"\nA-B ::= "3"\nstart ::= "4"',
            ["1234"],
            ["1111", "4"],
        ),
        ('root ::= x | start\nx ::= "(" root ")"\nX ::= "no"\nstart ::= "a"', ["((a))"], ["no"]),
        ('root ::= ("in" | "int" | [a-z]+) (";" | root)', ["int;", "inti;", "i;"], ["int", ";"]),
        ("root ::= root . | .", ["a\n\0é😀"], [""]),
        ("root ::= ", [""], ["a"]),
        ('root ::= "a"{0} "b" | "c" root{0,0}', ["b", "c"], ["ab", "cb"]),
    ],
)
def test_grammars_allow_their_texts_and_no_others(grammar, allowed, refused):
    assert [text for text in allowed if not allows(grammar, text)] == []
    assert [text for text in refused if allows(grammar, text)] == []


@pytest.mark.parametrize("rule", ["root ::= {}", 'root ::= {} | "(" root ")"'])
def test_each_character_may_stand_in_texts_and_between_brackets(rule):
    for code in [*range(0x82), 0xE9, 0x17F, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]:
        for written in (f'"\\U{code:08x}"', f"[\\U{code:08x}]"):
            assert allows(rule.format(written), chr(code))
            assert not allows(rule.format(written), chr(code - 1 if code not in (0, 0xE000) else 1))
            if code not in map(ord, '"\\^]') and not 0xD7FF <= code <= 0xE000:
                raw = written[0] + chr(code) + written[-1]
                assert allows(rule.format(raw), chr(code))


@pytest.mark.parametrize("depth", [19, 20, 21, 22, 45, 96])
@pytest.mark.parametrize("innermost", ['"a"', 'root "b"'])
def test_deep_groups_are_written_so_that_they_can_be_read(depth, innermost):
    grammar = "root ::= " + '("c" | ' * depth + f'("a" | {innermost})' + ")" * depth
    assert allows(grammar, "a")
    assert allows(grammar, "c")
    assert allows(grammar, "ab") == ("b" in innermost)


@pytest.mark.parametrize(("last", "most"), [('"x"', 300), ('"x" | root', 1000)])
def test_rules_that_lead_too_deep_are_refused(last, most):
    chain = "\n".join(f'r{number} ::= r{number + 1} "a"' for number in range(4000))
    with pytest.raises(InvalidGrammarError, match=f"more than {most} levels"):
        lark_of_gbnf(f"{chain}\nr4000 ::= {last}\nroot ::= r0")


@pytest.mark.usefixtures("others_objects_set_aside")
@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + '"a"|' * 30_000 + 'root "b"',
        "root ::= root | " + '"a"?' * 25_000,
        "root ::= root | " + "[a-c]*" * 20_000,
        'root ::= root "' + "a" * (MAX_SOURCE_BYTES - 50) + '" | "b"',
        "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(50))
        + '\nr50 ::= "x"\nroot ::= r0 root?',
        "root ::= root " + " ".join(f"[\\U{0x1000 + 3 * n:08x}]" for n in range(6000)),
        "root ::= (" + "|".join(f'[a-z]{{{n}}} "a"' for n in range(1, 5000)) + ") root?",
    ],
)
def test_any_grammar_is_written_or_refused_within_a_second(grammar):
    begun = time.process_time()
    with contextlib.suppress(InvalidGrammarError):
        lark_of_gbnf(grammar)
    assert time.process_time() - begun < 1
