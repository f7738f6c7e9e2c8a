import re
import signal
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.errors import CheckpointError
from loaders.quantization import name_patterns
from loaders.quantization.name_patterns import (
    MAX_NAME_CHARACTERS,
    MAX_PATTERNS,
    NamePatterns,
    check_pattern,
)

NAMES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 2, 10, 12, 19)
    for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
] + ["lm_head", "model.embed_tokens", "model.layers.0"]
USUAL = [
    r".*\.18\..*gate.*",
    r".*down.*",
    r"model\.layers\.(0|1|2)\.",
    r"model.layers.1\.",
    r".*(q|k|v|o)_proj$",
    r"^model\.layers\.[0-9]\.",
    r"model\.layers\.1[0-9]\.mlp\.(?:gate|up)_proj",
    r"model[.]layers[.]\d+[.]self_attn",
    r".*?(?:lm_head)",
    r".*mlp.gate$",
    re.escape("model.layers.12.mlp.down_proj") + "$",
    r"^(model\.)?layers",
    r"lm_head|.*\.o_proj",
    r"model\.layers\.\d{2,}\..*",
    r"model\.layers\.(?P<first>1?[02468])\.",
    r".*[^\W\d]_proj\Z",
    r"model\.layers\.\d{,2}\.mlp",
    r"model\.layers\.1{,}\.",
    r"model\.layers\.[{,2}\]\d]+\.mlp",
    r"model\\{,2}|lm_head",
]


@contextmanager
def ends_soon():
    """Fail rather than hang, should a match take exponential time after all."""

    def give_up(*_):
        raise TimeoutError("a pattern takes far too long")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def matches(pattern, name):
    return NamePatterns([pattern]).find(name) == pattern


def find_all(patterns, names):
    return [patterns.find(name) for name in names]


@pytest.mark.parametrize("pattern", USUAL)
def test_patterns_as_checkpoints_have_them_match_as_pythons_do(pattern):
    expected = [name for name in NAMES if re.match(pattern, name)]
    found = NamePatterns([pattern])
    assert [name for name in NAMES if found.find(name)] == expected


PIECES = ["a", "b", "ab", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\.", "[]a]", "{", "a{x"]
PATTERNS = st.recursive(
    st.sampled_from([*PIECES, "^", "$", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{,2}", "{,}", "{1,}"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
    ),
    max_leaves=6,
)


@given(pattern=PATTERNS, name=st.text("abc.1{x]", max_size=8))
def test_any_pattern_that_is_read_matches_as_pythons_does(pattern, name):
    assert matches(pattern, name) == (re.match(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern",
    [r"model\.layers\.(a+)+$", r"(a|a)*b", r"(a|ab|b)*c$", r"(.*a){12}", r".*.*.*.*.*.*.*.*x"],
)
def test_patterns_that_would_take_exponential_time_take_hardly_any(pattern):
    name = ("model.layers." if "model" in pattern else "") + "a" * 400 + "!"
    with ends_soon():
        assert matches(pattern, name) == (pattern == r"(.*a){12}")


def test_what_a_whole_checkpoint_may_cost_is_bounded(monkeypatch):
    monkeypatch.setattr(name_patterns, "MAX_SECONDS", 0.5)
    patterns = NamePatterns([f".*{number}.*a.{{20}}b[^c]*$" for number in range(1000)])
    words = (f"{number:b}".replace("1", "a").replace("0", "b") for number in range(100_000))
    names = (word.rjust(300, "a") for word in words)
    with ends_soon(), pytest.raises(CheckpointError, match="too many or too complex"):
        find_all(patterns, names)


def test_a_rule_for_every_layer_of_a_large_model_is_no_problem():
    layers = [f"model.layers.{n}.mlp.proj_{m}" for n in range(80) for m in range(7)]
    by_name = [re.escape(name) + "$" for name in layers[::2]]
    patterns = NamePatterns([*by_name, *(f".*?(?:{name})" for name in layers[::2])])
    assert [patterns.find(name) is not None for name in layers] == [True, False] * 280


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", r"missing \)"),
        ("a)", r"unexpected \)"),
        ("[a", "missing ]"),
        ("*a", "no argument for repetition"),
        ("a**", "bad repetition"),
        ("a*+", "bad repetition"),
        ("[b-a]", "invalid character class range"),
        (r"(a)\1", "invalid escape"),
        ("(?!lm_head).*", r"invalid perl operator: \(\?!"),
        ("(?<=a)b", "invalid"),
        ("(" * 1001 + ")" * 1001, "characters"),
        ("(a{999}){999}", "invalid repetition size"),
        ("(?:(?:(?:(?:a?){30}){30}){30}){30}", "invalid repetition size"),
        ("[^a]{1000}" * 90, "too large"),
        ("a{1001}", "invalid repetition size"),
        ("a{3,2}", "invalid repetition size"),
        ("a" * 2000, "characters"),
        ("a\\", "trailing"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(pattern, reason):
    with ends_soon(), pytest.raises(CheckpointError, match=reason):
        check_pattern(pattern)


def test_too_many_rules_and_absurd_names_are_refused():
    with pytest.raises(CheckpointError, match="at most"):
        NamePatterns([f"a{number}" for number in range(MAX_PATTERNS + 1)])
    with pytest.raises(CheckpointError, match="has a name of"):
        NamePatterns(["a"]).find("a" * (MAX_NAME_CHARACTERS + 1))


def test_a_name_that_is_no_text_matches_as_pythons_does():
    assert NamePatterns(["model"]).find("model.\ud800") == "model"
    assert NamePatterns(["[a-z]"]).find("\ud800") is None
    assert NamePatterns(["."]).find("\ud800") == "."
