"""Grammars let through what readers read, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.errors import QueueFullError
from service.grammars.errors import InvalidGrammarError
from service.grammars.limits import PARSER_LIMITS
from service.grammars.reading import GrammarReading
from service.grammars.wanted import TextForm, TextFormKind
from service.tools import turn_form
from service.tools.calls import Tool, ToolMode, ToolUse
from service.tools.formats import GENERIC, HERMES, LLAMA3, MISTRAL, MISTRAL_BY_NAME
from service.tools.pieces import Pieces
from service.tools.turn_form import (
    ConflictingFormError,
    InvalidToolError,
    form_behind_thoughts,
    form_of_calls,
)
from service.tools.turn_grammar import MAX_CALLS, Thoughts
from tests.service.tools.in_sum import in_sum, read

if TYPE_CHECKING:
    from service.tools.formats import ToolFormat

MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]"]
CITY = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [Tool("weather", "", CITY), Tool("now")]
FORMATS = [HERMES, LLAMA3, MISTRAL, MISTRAL_BY_NAME, GENERIC]
THOUGHTS = ("<think>", "</think>")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Vocabulary:
    """A byte a token, and the marks as pieces of their own where that is said."""

    def __init__(self, marks: list[str]) -> None:
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        backend = Tokenizer(models.BPE(letters, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken("</s>", special=True)])
        # As in the wild: some are marked special, some are not; grammars treat them alike.
        backend.add_tokens([AddedToken(m, special=m.startswith("[")) for m in marks])
        self.backend_tokenizer = backend
        self.end = backend.token_to_id("</s>")
        self._followed = LLTokenizer(backend.to_str(), eos_token=self.end)

    def accepts(self, form: TextForm, text: str) -> str:
        """ "whole" where the text may end there, "begun" where more must come, "" for neither."""
        matcher = LLMatcher(self._followed, form.grammar(), limits=PARSER_LIMITS, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if matcher.try_consume_tokens(ids) < len(ids):
            return ""
        return "whole" if matcher.is_accepting() else "begun"


PLAIN, WITH_PIECES = Vocabulary([]), Vocabulary(MARKS)
vocabularies = pytest.mark.parametrize("vocabulary", [PLAIN, WITH_PIECES], ids=["plain", "pieces"])


def form_of(
    vocabulary: Vocabulary,
    tool_format: ToolFormat,
    use: ToolUse,
    thoughts: Thoughts | None = None,
    text_form: TextForm | None = None,
) -> TextForm:
    pieces = Pieces.of(vocabulary)
    return form_of_calls(use, tool_format, pieces, thoughts, text_form).text_form


def spelt(tool_format: ToolFormat, *calls: tuple[str, str]) -> str:
    """Calls as a model of this format writes them."""
    if tool_format is MISTRAL_BY_NAME:
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in calls)
    key = "parameters" if tool_format is LLAMA3 else "arguments"
    told = [f'{{"name": "{name}", "{key}": {text}}}' for name, text in calls]
    if tool_format is LLAMA3:
        return "; ".join(told)
    if tool_format is MISTRAL:
        return f"[TOOL_CALLS] [{', '.join(told)}]"
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in told)


WEATHER, NOW = ("weather", '{"city": "Paris"}'), ("now", "{}")


@vocabularies
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_calls_are_let_through_and_are_read(vocabulary, tool_format, mode):
    form = form_of(vocabulary, tool_format, ToolUse(TOOLS, mode, is_parallel=True))
    for calls in ([WEATHER], [NOW], [NOW, WEATHER, NOW]):
        text = spelt(tool_format, *calls)
        assert vocabulary.accepts(form, text) == "whole"
        found = in_sum(read(tool_format.new_reader(["weather", "now"]), [text]))
        assert [one[2:] for one in found] == [(*call, True) for call in calls]


@vocabularies
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
def test_text_comes_only_where_no_call_must(vocabulary, tool_format):
    auto = form_of(vocabulary, tool_format, ToolUse(TOOLS))
    required = form_of(vocabulary, tool_format, ToolUse(TOOLS, ToolMode.REQUIRED))
    for text in ("", "It is sunny.\n", "a < b", '[1, 2] {"x": 1}'):
        assert vocabulary.accepts(auto, text) == "whole"
        assert vocabulary.accepts(required, text) != "whole"
    assert vocabulary.accepts(required, "It") == ""


@vocabularies
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_calls_that_have_begun_follow_the_schemas(vocabulary, tool_format, mode):
    form = form_of(vocabulary, tool_format, ToolUse(TOOLS, mode))
    for call in (
        ("nobody", "{}"),
        ("weather", "{}"),
        ("weather", '{"city": 7}'),
        ("weather", '{"city": "Paris", "other": 1}'),
        ("weather", '{  "city": "Paris"}'),
        ("now", "[]"),
    ):
        assert vocabulary.accepts(form, spelt(tool_format, call)) == ""


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
def test_arguments_have_no_names_but_those_a_schema_lists_unless_it_says_more(tool_format):
    inner = {"type": "object", "properties": {"b": {"type": "string"}}}
    given = {"properties": {"a": inner, "c": {"type": "array", "items": inner}}}
    closed, opened = Tool("closed", "", given), Tool("opened", "", {**given, "required": ["d"]})
    use = ToolUse([closed, opened, Tool("none", "", {"properties": {}})], ToolMode.REQUIRED)
    form = form_of(PLAIN, tool_format, use)
    for name, arguments, found in (
        ("closed", '{"a": {"b": "x"}, "c": [{"b": "x"}, {}]}', "whole"),
        ("closed", '{"a": {"e": 1}}', ""),
        ("closed", '{"c": [{"e": 1}]}', ""),
        ("closed", '{"e": 1}', ""),
        ("opened", '{"d": 1}', "whole"),
        ("opened", '{"d": 1, "e": 1}', "whole"),
        ("none", "{}", "whole"),
        ("none", '{"e": 1}', ""),
    ):
        assert PLAIN.accepts(form, spelt(tool_format, (name, arguments))) == found


@vocabularies
@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL, MISTRAL_BY_NAME, GENERIC])
def test_text_may_come_before_a_call(vocabulary, tool_format):
    form = form_of(vocabulary, tool_format, ToolUse(TOOLS))
    assert vocabulary.accepts(form, f"Let me see. {spelt(tool_format, NOW)}") == "whole"
    required = form_of(vocabulary, tool_format, ToolUse(TOOLS, ToolMode.REQUIRED))
    assert vocabulary.accepts(required, f"Let me see. {spelt(tool_format, NOW)}") == ""


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_one_call_alone_where_several_are_not_wanted(tool_format, mode):
    form = form_of(WITH_PIECES, tool_format, ToolUse(TOOLS, mode, is_parallel=False))
    assert WITH_PIECES.accepts(form, spelt(tool_format, NOW)) == "whole"
    assert WITH_PIECES.accepts(form, spelt(tool_format, NOW, NOW)) == ""


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
def test_several_calls_come_by_default_where_models_were_trained_to_call(tool_format):
    form = form_of(WITH_PIECES, tool_format, ToolUse(TOOLS, ToolMode.REQUIRED))
    is_let_through = WITH_PIECES.accepts(form, spelt(tool_format, NOW, NOW)) == "whole"
    assert is_let_through is not tool_format.is_generic


def test_calls_come_to_an_end():
    form = form_of(PLAIN, HERMES, ToolUse(TOOLS, ToolMode.REQUIRED))
    assert PLAIN.accepts(form, spelt(HERMES, *[NOW] * MAX_CALLS)) == "whole"
    assert PLAIN.accepts(form, spelt(HERMES, *[NOW] * (MAX_CALLS + 1))) == ""


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
def test_named_and_allowed_tools_are_the_only_ones(tool_format):
    named = ToolUse(TOOLS, ToolMode.REQUIRED, "now", is_parallel=False)
    allowed = ToolUse(TOOLS, ToolMode.REQUIRED, allowed={"now"})
    for use in (named, allowed):
        form = form_of(WITH_PIECES, tool_format, use)
        assert WITH_PIECES.accepts(form, spelt(tool_format, NOW)) == "whole"
        assert WITH_PIECES.accepts(form, spelt(tool_format, WEATHER)) == ""


def test_llama_may_answer_with_other_json():
    form = form_of(PLAIN, LLAMA3, ToolUse(TOOLS))
    assert PLAIN.accepts(form, '{"city": "Paris"}') == "whole"
    assert PLAIN.accepts(form, '\n{ "a": 1}') == "whole"
    assert PLAIN.accepts(form, '{"name": "nobody"') == ""


@vocabularies
@pytest.mark.parametrize("tool_format", [HERMES, LLAMA3])
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
@pytest.mark.parametrize("are_open", [False, True])
def test_thoughts_may_come_before_calls(vocabulary, tool_format, mode, are_open):
    thoughts = Thoughts(THOUGHTS, are_open)
    form = form_of(vocabulary, tool_format, ToolUse(TOOLS, mode), thoughts)
    call = spelt(tool_format, WEATHER)
    opening = "" if are_open else "<think>"
    assert vocabulary.accepts(form, f"{opening}\nhm </thi\n</think>\n\n{call}") == "whole"
    assert (vocabulary.accepts(form, call) == "whole") is not are_open


@vocabularies
@pytest.mark.parametrize("are_open", [False, True])
def test_text_behind_thoughts_has_the_form_that_was_asked_for(vocabulary, are_open):
    asked = TextForm(TextFormKind.JSON_SCHEMA, "response_format", schema=SCHEMA)
    thoughts = Thoughts(THOUGHTS, are_open)
    form = form_behind_thoughts(asked, thoughts, Pieces.of(vocabulary))
    opening = "" if are_open else "<think>"
    assert form.param == "response_format"
    assert vocabulary.accepts(form, opening + '{"a": x}</think>\n{"a": 1}') == "whole"
    assert vocabulary.accepts(form, opening + "hm</think>\nno") == ""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (TextFormKind.CHOICE, "yes"),
        (TextFormKind.REGEX, "y[e]s"),
        (TextFormKind.GRAMMAR, 'start: turn "s"\nturn: "ye"'),
        (TextFormKind.GRAMMAR, 'root ::= turn "s"\nturn ::= "ye"'),
    ],
)
def test_text_behind_thoughts_may_have_any_kind_of_form(kind, text):
    asked = TextForm(kind, "structured_outputs", texts=[text])
    form = form_behind_thoughts(asked, Thoughts(THOUGHTS, True), Pieces.of(PLAIN))
    assert PLAIN.accepts(form, "hm</think>yes") == "whole"
    assert PLAIN.accepts(form, "hm</think>no") == ""


@vocabularies
@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL, MISTRAL_BY_NAME, GENERIC])
def test_text_without_a_call_has_the_form_that_was_asked_for(vocabulary, tool_format):
    asked = TextForm(TextFormKind.JSON_SCHEMA, "response_format", schema=SCHEMA)
    form = form_of(vocabulary, tool_format, ToolUse(TOOLS), text_form=asked)
    assert vocabulary.accepts(form, '{"a": 1}') == "whole"
    assert vocabulary.accepts(form, spelt(tool_format, NOW)) == "whole"
    assert vocabulary.accepts(form, "no") == ""


def test_forms_that_cannot_stand_beside_calls_are_refused_by_name():
    regex = TextForm(TextFormKind.REGEX, "guided_regex", texts=["a+"])
    schema = TextForm(TextFormKind.JSON_SCHEMA, "response_format", schema=SCHEMA)
    for tool_format, asked in ((HERMES, regex), (LLAMA3, schema)):
        with pytest.raises(ConflictingFormError, match=asked.param):
            form_of(PLAIN, tool_format, ToolUse(TOOLS), text_form=asked)
        # Where a call must come there is no text.
        form_of(PLAIN, tool_format, ToolUse(TOOLS, ToolMode.REQUIRED), text_form=asked)


def test_schema_that_cannot_be_followed_is_refused_where_it_must_be():
    odd: dict[str, Any] = {"properties": {"a": {"type": "string", "format": "no-such-format"}}}
    for use in (
        ToolUse([TOOLS[1], Tool("odd", "", odd)], ToolMode.REQUIRED),
        ToolUse([TOOLS[1], Tool("odd", "", odd, is_strict=True)]),
    ):
        with pytest.raises(InvalidToolError, match="no-such-format") as raised:
            form_of(PLAIN, HERMES, use)
        assert raised.value.index == 1
    form_of(PLAIN, HERMES, ToolUse([TOOLS[1], Tool("odd", "", odd)], ToolMode.REQUIRED, "now"))


def test_schema_that_cannot_be_followed_is_told_of_where_it_need_not_be():
    odd: dict[str, Any] = {"properties": {"a": {"type": "string", "format": "no-such-format"}}}
    use = ToolUse([TOOLS[0], Tool("odd", "", odd)])
    made = form_of_calls(use, HERMES, Pieces.of(PLAIN), None, None)
    assert made.unfollowed == (1,)
    assert PLAIN.accepts(made.text_form, spelt(HERMES, ("odd", '{"b": [1, 2]}'))) == "whole"
    assert PLAIN.accepts(made.text_form, spelt(HERMES, ("weather", '{"b": [1, 2]}'))) == ""


def test_arguments_are_always_objects():
    for kind in ("string", ["array", "null"]):
        with pytest.raises(InvalidToolError, match="object"):
            form_of(PLAIN, HERMES, ToolUse([Tool("x", "", {"type": kind})], ToolMode.REQUIRED))


@vocabularies
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_text_of_a_tool_matches_its_pattern_as_a_whole(vocabulary, tool_format, mode):
    tool = Tool("patch", "", {"type": "object"}, is_strict=True, pattern='a"|\\*{3}\n[^x]+\\\\')
    form = form_of(vocabulary, tool_format, ToolUse([tool], mode))
    for text, may_come in (
        ('a"', True),
        ("***\né\t\\", True),
        ('a""', False),
        ("x***\né\\", False),
        ("***\nx\\", False),
        ("", False),
    ):
        written = spelt(tool_format, ("patch", json.dumps({"input": text}, ensure_ascii=False)))
        assert (vocabulary.accepts(form, written) == "whole") is may_come
    assert vocabulary.accepts(form, spelt(tool_format, ("patch", "{}"))) == ""


def test_digits_letters_and_blanks_of_a_tools_pattern_are_asciis():
    tool = Tool("patch", "", is_strict=True, pattern=r"\d[\w.]\s")
    form = form_of(PLAIN, HERMES, ToolUse([tool], ToolMode.REQUIRED))
    for text, may_come in (("1a ", True), ("9. ", True), ("٣a ", False), ("1é ", False)):
        written = spelt(HERMES, ("patch", json.dumps({"input": text}, ensure_ascii=False)))
        assert (PLAIN.accepts(form, written) == "whole") is may_come
    wide = spelt(HERMES, ("patch", '{"input": "1a\u2003"}'))
    assert PLAIN.accepts(form, wide) != "whole"


@pytest.mark.parametrize("pattern", ["a)|(?:b", "(?=a)", "a[", "(?x)a #"])
def test_pattern_that_cannot_be_followed_is_refused(pattern):
    tools = [TOOLS[1], Tool("patch", "", is_strict=True, pattern=pattern)]
    with pytest.raises(InvalidToolError) as raised:
        form_of(PLAIN, HERMES, ToolUse(tools))
    assert raised.value.index == 1


def test_tools_that_are_too_much_together_are_refused_or_told_of(monkeypatch):
    many = {"properties": {f"p{n}": {"type": "string"} for n in range(99)}}
    tools = [Tool("weather", "", many), TOOLS[1]]
    form_of(PLAIN, HERMES, ToolUse(tools))  # each by itself is read now, and kept
    reading = GrammarReading(limits=LLParserLimits(max_grammar_size=150))
    monkeypatch.setattr(turn_form, "require_readable", reading.require_readable)
    made = form_of_calls(ToolUse(tools), HERMES, Pieces.of(PLAIN), None, None)
    assert made.unfollowed == (0, 1)
    strict = [Tool("weather", "", many, is_strict=True), TOOLS[1]]
    for use in (ToolUse(strict), ToolUse(tools, ToolMode.REQUIRED)):
        with pytest.raises(InvalidGrammarError, match="all together"):
            form_of(PLAIN, HERMES, use)
    reading.close()


def of_one(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": value}, "required": ["a"]}


def test_a_tool_whose_schema_ends_its_reader_is_told_of_or_refused_by_its_place():
    # The library goes as deep as the definitions lead.
    chain = {f"d{n}": of_one({"$ref": f"#/$defs/d{n + 1}"}) for n in range(900)} | {"d900": {}}
    deep = of_one({"$ref": "#/$defs/d0"}) | {"$defs": chain}
    tools = [TOOLS[1], Tool("deep", "", deep)]
    assert form_of_calls(ToolUse(tools), HERMES, Pieces.of(PLAIN), None, None).unfollowed == (1,)
    with pytest.raises(InvalidToolError, match="nested too deeply") as refused:
        form_of(PLAIN, HERMES, ToolUse(tools, ToolMode.REQUIRED))
    assert refused.value.index == 1


@pytest.fixture
def read_slowly(monkeypatch) -> list[str]:
    """The names of tools that were read, each of which took 0.3 s."""
    names: list[str] = []
    read = turn_form._part_of_tool

    def part_of_tool(tool: Tool) -> dict[str, Any]:
        names.append(tool.name)
        if tool.name.startswith("bomb"):
            raise InvalidGrammarError("takes too much time to read")
        return read(tool)

    monkeypatch.setattr(turn_form, "_part_of_tool", part_of_tool)
    monkeypatch.setattr(turn_form, "monotonic", lambda: 100 + 0.3 * len(names))
    return names


@pytest.mark.parametrize("name", ["bomb", "slow"])
def test_tools_that_take_long_are_read_for_a_second_and_the_rest_told_of(read_slowly, name):
    use = ToolUse([Tool(f"{name}{n}", "", CITY) for n in range(128)])
    made = form_of_calls(use, HERMES, Pieces.of(PLAIN), None, None)
    assert read_slowly == [f"{name}{n}" for n in range(4)]
    assert made.unfollowed == tuple(range(0 if name == "bomb" else 4, 128))
    call = spelt(HERMES, (f"{name}99", '{"b": [1, 2]}'))
    assert PLAIN.accepts(made.text_form, call) == "whole"


@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_where_they_must_be_followed_the_caller_is_asked_to_come_back(read_slowly, mode):
    is_strict = mode is ToolMode.AUTO
    use = ToolUse([Tool(f"slow{n}", "", CITY, is_strict=is_strict) for n in range(128)], mode)
    with pytest.raises(QueueFullError, match="too long to read") as refused:
        form_of(PLAIN, HERMES, use)
    assert refused.value.retry_after_s > 0
    assert len(read_slowly) == 4


def test_marks_are_pieces_where_the_vocabulary_has_them():
    assert "<[" in form_of(WITH_PIECES, HERMES, ToolUse(TOOLS)).grammar()
    assert "<[" not in form_of(PLAIN, HERMES, ToolUse(TOOLS)).grammar()
    assert Pieces.of(WITH_PIECES).hidden_ids(["[ARGS]", "<tool_call>", "none"]) == {
        WITH_PIECES.backend_tokenizer.token_to_id("[ARGS]")
    }
