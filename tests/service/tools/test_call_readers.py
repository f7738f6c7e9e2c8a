"""Calls are read alike however the text that holds them is cut."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tools.call_readers import CallReader, HermesReader, Llama3Reader, MistralReader
from service.tools.turn_events import CallArguments, TextPiece
from tests.service.tools.in_sum import in_sum, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.tools.turn_events import TurnEvent

NAMES = ("weather", "search-web_2")
READERS = [HermesReader, Llama3Reader, MistralReader]
# What texts and arguments may hold to mislead a reader.
TRAPS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<think>"),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        "\\u00e9",
        ";",
        ",",
        " ",
        "\n",
        "\t",
        "👩‍👩‍👧",
        "é",
        "世",
        "a",
    ),
    *('{"name": "weather"', '{"name": "nobody", "arguments": {}}', "\\ud83d\\ude00", "<tool_c"),
]
texts = st.lists(st.sampled_from(TRAPS) | st.text(max_size=4), max_size=8).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(texts, values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)


@st.composite
def cut(draw: st.DrawFn, written: str) -> list[str]:
    """A text in pieces."""
    places = sorted(draw(st.sets(st.integers(0, len(written)), max_size=12)))
    return [written[a:b] for a, b in zip([0, *places], [*places, len(written)], strict=True)]


def hermes(told: list[tuple[str, str]]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'
        for name, text in told
    )


def llama3(told: list[tuple[str, str]]) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {text}}}' for name, text in told)


def mistral(told: list[tuple[str, str]]) -> str:
    listed = ", ".join(f'{{"name": "{name}", "arguments": {text}}}' for name, text in told)
    return f"[TOOL_CALLS] [{listed}]"


def mistral_by_name(told: list[tuple[str, str]]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in told)


SPELLINGS = [
    (HermesReader, hermes),
    (Llama3Reader, llama3),
    (MistralReader, mistral),
    (MistralReader, mistral_by_name),
]
spellings = pytest.mark.parametrize(("reader", "spell"), SPELLINGS)


@spellings
@settings(deadline=None)
@given(data=st.data())
def test_calls_are_read_as_written_however_they_are_cut(
    reader: type[CallReader],
    spell: Callable[[list[tuple[str, str]]], str],
    data: st.DataObject,
) -> None:
    is_ascii = data.draw(st.booleans())
    told = [(name, json.dumps(given_, ensure_ascii=is_ascii)) for name, given_ in data.draw(calls)]
    pieces = data.draw(cut(spell(told)))
    found = in_sum(read(reader(NAMES), pieces))
    assert found == [("call", number, *call, True) for number, call in enumerate(told)]


@pytest.mark.parametrize("reader", READERS)
@settings(deadline=None)
@given(data=st.data(), is_cut=st.booleans())
def test_any_text_gives_the_same_however_it_is_cut(
    reader: type[CallReader], data: st.DataObject, is_cut: bool
) -> None:
    told = [(name, json.dumps(given_)) for name, given_ in data.draw(calls)]
    spelled = st.sampled_from([spell for _, spell in SPELLINGS]).map(lambda spell: spell(told))
    parts = data.draw(st.lists(texts | spelled, max_size=4))
    written = "".join(parts)
    written = written[: data.draw(st.integers(0, len(written)))]
    whole = in_sum(read(reader(NAMES), [written], is_cut=is_cut))
    assert in_sum(read(reader(NAMES), list(written), is_cut=is_cut)) == whole
    assert in_sum(read(reader(NAMES), data.draw(cut(written)), is_cut=is_cut)) == whole


@pytest.mark.parametrize("reader", READERS)
@settings(deadline=None)
@given(written=texts)
def test_without_a_complete_call_the_text_is_all_there(
    reader: type[CallReader], written: str
) -> None:
    found = in_sum(read(reader(["unheard-of"]), list(written)))
    assert found == ([("text", written)] if written else [])


def test_text_before_between_and_after_calls_is_text_without_white_space() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    found = in_sum(read(HermesReader(NAMES), [f"Let me see. \n{call}\n and \n{call} \n done \n"]))
    assert found == [
        ("text", "Let me see."),
        ("call", 0, "weather", "{}", True),
        ("text", "and"),
        ("call", 1, "weather", "{}", True),
        ("text", "done \n"),
    ]


def test_arguments_are_told_as_they_come() -> None:
    reader = HermesReader(NAMES)
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa'
    assert in_sum(reader.push(written)) == [("call", 0, "weather", '{"city": "Pa', False)]
    assert in_sum(reader.push('ris"}')) == [("arguments", 0, 'ris"}')]
    assert reader.num_calls == 0
    reader.push("}")
    assert reader.num_calls == 1


@pytest.mark.parametrize(
    "written",
    [
        '{"arguments": {"city": "P"}, "name": "weather"}',
        '{"type": "function", "id": "x", "name": "weather", "parameters": {"city": "P"}}',
        '\n { "name" : "weather" , "arguments" : {"city": "P"} } \n',
        '{"n\\u0061me": "w\\u0065ather", "arguments": {"city": "P"}}',
    ],
)
def test_calls_may_be_spelt_as_json_allows(written: str) -> None:
    found = in_sum(read(HermesReader(NAMES), list(f"<tool_call>{written}</tool_call>")))
    assert found == [("call", 0, "weather", '{"city": "P"}', True)]


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "name": "weather", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        "<tool_call>weather()</tool_call>",
        "<tool_call>",
        "a <tool_call> is a mark",
        '<tool_call>{"' + "k" * 5000 + '": "", "name": "weather", "arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_call_is_given_back_as_text(written: str) -> None:
    reader = HermesReader(NAMES)
    assert in_sum(read(reader, list(written))) == [("text", written)]
    assert reader.num_calls == 0


@pytest.mark.parametrize(
    ("broken", "rest"),
    [
        ('{"city": Paris}', "}</tool_call>"),
        ('{"a": [1}}', "}}</tool_call>"),
        ('{"a": NaN}', "}</tool_call>"),
        ('{"a": "\n"}', "}</tool_call>"),
        ('{"a": 1}, 7', "7}</tool_call>"),
        ("{" * 5, ""),  # open to the end
    ],
)
def test_call_that_breaks_later_has_no_end_and_what_follows_is_text(broken: str, rest: str) -> None:
    written = f'<tool_call>{{"name": "weather", "arguments": {broken}}}</tool_call>'
    reader = HermesReader(NAMES)
    first, *others = in_sum(read(reader, list(written)))
    assert first[:3] == ("call", 0, "weather")
    assert first[-1] is False
    assert others == ([("text", rest)] if rest else [])
    assert reader.num_calls == 0


@spellings
@pytest.mark.parametrize("is_cut", [False, True])
def test_call_that_has_begun_is_no_text_wherever_it_ends(
    reader: type[CallReader], spell: Callable[[list[tuple[str, str]]], str], is_cut: bool
) -> None:
    written = spell(
        [("weather", '{"city": "Paris", "days": [1, {"a": "\\""}]}'), ("weather", "{}")]
    )
    for end in range(written.index('{"city') + 1, written.index("}]}") + 3):
        found = in_sum(read(reader(NAMES), list(written[:end]), is_cut=is_cut))
        assert [(kind, *more[1:2]) for kind, *more in found] == [("call", "weather")]
        assert written[:end].endswith(found[0][3])


@spellings
@settings(deadline=None)
@given(data=st.data(), is_cut=st.booleans())
def test_nothing_is_told_twice(
    reader: type[CallReader],
    spell: Callable[[list[tuple[str, str]]], str],
    data: st.DataObject,
    is_cut: bool,
) -> None:
    told = [(name, json.dumps(given_)) for name, given_ in data.draw(calls)]
    written = spell(told)
    place = data.draw(st.integers(0, len(written)))
    # Broken there, or the end of it.
    written = written[:place] + data.draw(texts) + data.draw(st.sampled_from(["", written[place:]]))
    position = 0
    for piece in pieces_of(read(reader(NAMES), data.draw(cut(written)), is_cut=is_cut)):
        found = written.find(piece, position)
        assert found >= 0, f"{piece!r} was told before"
        position = found + len(piece)


def pieces_of(events: Sequence[TurnEvent]) -> list[str]:
    """What was told of a text, in the order in which it stood there."""
    return [event.text for event in events if isinstance(event, TextPiece | CallArguments)]


def test_next_call_is_found_behind_a_broken_one() -> None:
    good = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    found = in_sum(read(HermesReader(NAMES), [f"<tool_call>{good}"]))
    assert found == [("text", "<tool_call>"), ("call", 0, "weather", "{}", True)]


@pytest.mark.parametrize("end", range(len("<tool_call>"), 66))
def test_call_that_was_cut_off_is_no_call_and_no_text(end: int) -> None:
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    reader = HermesReader(NAMES)
    found = in_sum(read(reader, [written[:end]], is_cut=True))
    is_complete = end >= written.index("\n</")
    assert reader.num_calls == is_complete
    assert [kind for kind, *_ in found] == ["call"] * (end > written.index('{"city'))
    assert all(one[-1] is is_complete for one in found)


@spellings
@pytest.mark.parametrize("end", range(12))
def test_where_only_calls_may_come_no_cut_off_beginning_is_text(
    reader: type[CallReader], spell: Callable[[list[tuple[str, str]]], str], end: int
) -> None:
    written = spell([("weather", "{}"), ("weather", "{}")])
    for cut_off in (written[:end], written[: len(written) // 2 + end]):
        kinds = {
            one[0] for one in in_sum(read(reader(NAMES, only_calls=True), [cut_off], is_cut=True))
        }
        assert kinds <= {"call"}


@spellings
def test_cut_off_beginning_of_a_further_call_is_no_text(
    reader: type[CallReader], spell: Callable[[list[tuple[str, str]]], str]
) -> None:
    written = spell([("weather", "{}")] * 2)
    for end in range(written.index("{}") + len("{}"), len(written)):
        found = in_sum(read(reader(NAMES), [written[:end]], is_cut=True))
        assert {kind for kind, *_ in found} == {"call"}


def test_half_a_mark_at_the_end_is_text() -> None:
    assert in_sum(read(HermesReader(NAMES), ["a < b <tool"], is_cut=True)) == [
        ("text", "a < b <tool")
    ]


def test_llamas_mark_may_stand_before_a_call_or_not() -> None:
    call = '{"name": "weather", "parameters": {}}'
    for written in (call, f"<|python_tag|>{call}", f"\n{call}\n", f"So: <|python_tag|> {call}"):
        calls_ = [one for one in in_sum(read(Llama3Reader(NAMES), [written])) if one[0] == "call"]
        assert calls_ == [("call", 0, "weather", "{}", True)]


@pytest.mark.parametrize(
    "written",
    ['{"city": "Paris"}', "{}", 'See {"name": "weather", "parameters": {}}', "<|python_tag|>1 + 1"],
)
def test_llamas_answers_that_are_no_calls_are_text(written: str) -> None:
    assert in_sum(read(Llama3Reader(NAMES), list(written))) == [("text", written)]


def test_mistrals_ids_are_left_out() -> None:
    written = '[TOOL_CALLS]weather[CALL_ID]abc123XYZ[ARGS]{"a": 1}'
    assert in_sum(read(MistralReader(NAMES), list(written))) == [
        ("call", 0, "weather", '{"a": 1}', True)
    ]
    listed = '[TOOL_CALLS][{"name": "weather", "arguments": {}, "id": "abc123XYZ"}]'
    assert in_sum(read(MistralReader(NAMES), [listed])) == [("call", 0, "weather", "{}", True)]


def test_ids_of_calls_differ() -> None:
    written = hermes([("weather", "{}")] * 2)
    ids = [event.id for event in read(HermesReader(NAMES), [written]) if hasattr(event, "name")]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") for one in ids)


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "weather", "arguments": {"a": "' + "\\\\{" * 40_000,
        '<tool_call>{"name": "weather", "arguments": {"a": ' + "[" * 100_000,
        '<tool_call>{"arguments": {"a": "' + "x" * 100_000 + '"}, "name": "weather"}',
        " " * 100_000,
        "<tool_c" * 15_000,
        "<tool_call>" * 10_000,
        "{" * 100_000,
        "[TOOL_CALLS]" * 9_000,
        "[TOOL_CALLS]" + " " * 100_000,
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_time_is_linear_a_character_at_a_time(reader: type[CallReader], written: str) -> None:
    def seconds(text: str) -> float:
        begin = time.process_time()
        read(reader(NAMES), list(text))
        return time.process_time() - begin

    quarter = min(seconds(written[: len(written) // 4]) for _ in range(3))
    assert seconds(written) < 12 * max(quarter, 0.005)  # four times as much, or sixteen
