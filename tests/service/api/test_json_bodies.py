"""How much a body may hold, counted before it is parsed; and names twice in one object."""

from __future__ import annotations

import json
import random
from types import FunctionType

import pytest

from service.api import json_bodies
from service.api.json_bodies import _PIECE, VALUES_PER_PART, count_parts, read_json
from service.errors import InvalidJsonError
from service.settings import Settings

MANY = 10**9
FULL = 4_000_000  # bytes, just under the cap


def counted(body: bytes) -> tuple[int, int, int]:
    parts = count_parts(body, MANY)
    return parts.num_containers, parts.num_names, parts.num_commas


def test_what_stands_in_strings_is_not_counted():
    body = json.dumps({'[{:,"\\': ["a,b", "\\", '\\"[', {"x": "[[[[", "y\n": ":"}]}).encode()
    assert counted(body) == (3, 3, 4)


@pytest.mark.parametrize("filler", ["\\", '"', "\\\\\\", '\\"', "a", "[,", "é"])
@pytest.mark.parametrize("shift", range(4))
def test_pieces_are_cut_anywhere_without_harm(filler, shift):
    text = "b" * shift + filler * (2 * _PIECE // len(filler))
    body = json.dumps({"a": [text, "[", text], "b": {"c": text}}).encode()
    assert counted(body) == (3, 3, 3)


def value_of(chance: random.Random, depth: int = 0) -> object:
    kind = chance.randrange(3 if depth > 5 else 6)
    if kind >= 4:
        return [value_of(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 3:
        names = ("".join(chance.choices('ab"\\[{:,', k=3)) for _ in range(chance.randrange(4)))
        return {name: value_of(chance, depth + 1) for name in names}
    return chance.choice([None, 1, -2.5e3, True, "", '\\"', "[{", '":"', "\u4e2d\n"])


@pytest.mark.parametrize("seed", range(200))
def test_whatever_has_no_name_twice_is_read_as_it_is(seed):
    value = {"top": value_of(random.Random(seed))}
    body = json.dumps(value, ensure_ascii=seed % 2 == 0).encode()
    assert read_json(body, MANY) == value


@pytest.mark.parametrize(
    "body",
    [
        '{"n": 1, "n": 2}',
        '{"m": [[{"n": {}, "o": 1, "n": {}}]]}',
        '{"n": {"n": 1}, "m": [], "n": {"n": 2}}',
        r'{"n": 1, "\u006e": 2}',
        '{"n": ' + "9" * 4000 + ', "n": 1e5}',
    ],
)
def test_a_name_that_an_object_has_twice_is_named(body):
    with pytest.raises(InvalidJsonError, match="names n twice") as caught:
        read_json(body.encode(), MANY)
    assert caught.value.param == "n"


def test_a_name_that_nobody_would_write_is_not_repeated():
    with pytest.raises(InvalidJsonError) as caught:
        read_json(json.dumps({"sk secret": 1})[:-1].encode() + b', "sk secret": 1}', MANY)
    assert "secret" not in f"{caught.value}{caught.value.param}"


def test_the_same_name_in_several_objects_is_no_fault():
    value = {"n": [{"n": 1}, {"n": {"n": 1}}]}
    assert read_json(json.dumps(value).encode(), MANY) == value


@pytest.mark.parametrize("part", ["[]", '{"a":1}', "[[]]", "{}"])
def test_more_parts_than_allowed_are_refused_before_they_are_parsed(part):
    body = f'{{"a": [{",".join([part] * 600)}]}}'.encode()
    with pytest.raises(InvalidJsonError, match=r"more than 500 parts .* max_body_parts"):
        read_json(body, 500)
    assert read_json(body, 2000)


def test_short_strings_count_like_lists():
    assert read_json(json.dumps(["ab"] * 100).encode(), 140)
    with pytest.raises(InvalidJsonError, match="parts"):
        read_json(json.dumps(["ab"] * 150).encode(), 140)


@pytest.mark.parametrize("value", ["0.5", "999", "1e300", '"ab"', "null"])
@pytest.mark.parametrize("end", ["]}", '], "n": 1, "n": 2}'])
def test_a_body_full_of_the_shortest_values_is_never_parsed(value, end, monkeypatch):
    monkeypatch.setattr(json_bodies, "from_json", lambda *_, **__: pytest.fail("it was parsed"))
    body = f'{{"prompt": [{",".join([value] * (FULL // (len(value) + 1)))}{end}'
    with pytest.raises(InvalidJsonError, match="parts"):
        read_json(body.encode(), Settings().max_body_parts)


def test_others_get_their_turn_while_a_name_is_looked_for(monkeypatch):
    loads, hooks = json.loads, []

    def noting(body: bytes, **given: object) -> object:
        hooks.extend(hook for name, hook in given.items() if name != "object_pairs_hook")
        return loads(body, **given)

    monkeypatch.setattr(json_bodies.json, "loads", noting)
    with pytest.raises(InvalidJsonError, match="names n twice"):
        read_json(b'{"n": 1, "m": 0.5, "n": 2}', MANY)
    # A hook of C's would let nobody in between two numbers.
    assert len(hooks) == 2
    assert all(isinstance(hook, FunctionType) for hook in hooks)


def test_plain_values_count_less():
    most = 100 * VALUES_PER_PART
    assert read_json(json.dumps([1] * most).encode(), 101)
    with pytest.raises(InvalidJsonError, match="parts"):
        read_json(json.dumps([1] * (most + 2 * VALUES_PER_PART)).encode(), 100)


@pytest.mark.parametrize("body", [b"", b"{", b'{"a', b'{"a": "\\', b"\xff[", b'{"a" 1}', b"\\" * 9])
def test_what_is_no_json_is_told_in_few_words(body):
    with pytest.raises(InvalidJsonError, match="not JSON") as caught:
        read_json(body, MANY)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [[31_999] * 6_500] * 64},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10}] * 2048},
        {"prompt": "f(a, [b], {c: d})\n" * 200_000},
    ],
    ids=["64 prompts of ids", "2 048 messages of ten parts", "4 MB of code"],
)
def test_large_requests_that_somebody_may_mean_pass(value):
    assert read_json(json.dumps(value).encode(), Settings().max_body_parts) == value
