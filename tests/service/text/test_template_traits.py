"""What is found out about a template before it is used: by what it makes of small dialogues."""

from __future__ import annotations

import pytest

from service.text.families import CHATML, FAMILIES
from service.text.template_traits import TemplateTraits, ends_open
from service.text.tool_turns import CallStyle
from tests.service.text import tool_templates

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def traits(small, chat_template):
    def find(source: str, tokenizer=small) -> TemplateTraits:
        return chat_template(tokenizer, source).traits

    return find


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (tool_templates.TAGS, CallStyle()),
        (tool_templates.MARKUP, CallStyle()),
        (tool_templates.ONE_CALL, CallStyle()),
        (tool_templates.BRACKETS, CallStyle(has_nine_letter_ids=True)),
        (tool_templates.TEXTS, CallStyle(has_text_arguments=True, has_null_content=True)),
    ],
)
def test_calls_are_given_in_the_shape_that_a_template_writes_well(traits, source, style):
    assert traits(source).call_style == style


CALLING = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
    "ARGUMENTS{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("written", "has_text"),
    [
        ("{{ c.function.arguments | tojson }}", False),
        ("{{ c.function | tojson }}", False),
        ("{{ c | tojson }}", False),
        ("{{ c.function.arguments }}", True),  # Python would write an object in its own words
        ("{{ '{' + c.function.arguments + '}' }}", True),
        (
            "{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}",
            False,
        ),
        ("{% for k, v in c.function.arguments.items() %}{{ k ~ v }}{% endfor %}", False),
    ],
)
def test_arguments_are_an_object_unless_that_is_not_written_as_json(traits, written, has_text):
    style = traits(CALLING.replace("ARGUMENTS", written)).call_style
    assert style is not None
    assert style.has_text_arguments is has_text


@pytest.mark.parametrize(
    ("content", "is_null"),
    [
        ("{{ m.content }}", False),  # it would write "None"
        ("{{ 'x' + m.content }}", False),
        ("{% if m.content %}{{ m.content }}{% endif %}", False),
        ("{% if m.content is not none %}says: {{ m.content }}{% endif %}", True),
        ("{% if m.content == '' %}{{ raise_exception('empty') }}{% endif %}{{ m.content }}", True),
    ],
)
def test_nothing_beside_a_call_is_given_as_what_is_written_as_nothing(traits, content, is_null):
    source = CALLING.replace("{{ m.content }}", content).replace("ARGUMENTS", "{{ c | tojson }}")
    style = traits(source).call_style
    assert style is not None
    assert style.has_null_content is is_null


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_our_families_know_of_no_tools(traits, family):
    found = traits(family.template)
    assert (found.takes_tools, found.call_style, found.takes_parallel_calls) == (False, None, False)
    assert found.takes_system


def test_templates_that_know_of_tools_are_found(traits):
    takes = {name: traits(source).takes_tools for name, source in tool_templates.ALL.items()}
    assert takes == {
        "tags": True,
        "brackets": True,
        "texts": False,
        "markup": True,
        "one_call": True,
    }


def test_one_that_only_mentions_tools_takes_none(traits):
    assert not traits("{% if tools %}{{ raise_exception('no') }}{% endif %}" + PLAIN).takes_tools
    assert not traits("{% if tools %}with tools{% endif %}" + PLAIN).takes_tools
    assert not traits("{{ tools.a.b if tools }}" + PLAIN).takes_tools


def test_results_without_calls_are_not_enough(traits):
    """As ChatML writes any role."""
    assert traits(PLAIN).call_style is None


def test_some_take_one_call_a_turn(traits):
    assert not traits(tool_templates.ONE_CALL).takes_parallel_calls
    assert traits(tool_templates.TAGS).takes_parallel_calls
    assert traits(tool_templates.BRACKETS).takes_parallel_calls


def test_system_turns_are_taken_where_their_text_is_written(traits):
    assert traits(PLAIN).takes_system
    assert not traits("{{ messages[-1].content }}").takes_system
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert not traits(refusing + PLAIN).takes_system


@pytest.mark.parametrize(
    ("end", "marks", "is_open"),
    [
        ("", None, False),
        ("{{ '<think>\n' if add_generation_prompt }}", ("<think>", "</think>"), True),
        ("<think>\n\n</think>\n\n", ("<think>", "</think>"), False),
        ("{{ messages[0].content.split('</think>')[-1] }}", ("<think>", "</think>"), False),
        ("{% if x %}[THINK]y[/THINK]{% endif %}", ("[THINK]", "[/THINK]"), False),
    ],
)
def test_reasoning_is_known_by_its_marks(traits, small_without_think, end, marks, is_open):
    found = traits(CHATML.template + "{% if messages %}" + end + "{% endif %}", small_without_think)
    assert found.reasoning_marks == marks
    assert found.opens_reasoning is is_open


def test_marks_in_the_vocabulary_tell_of_reasoning_too(traits, small_without_think):
    thinking = small_without_think
    thinking.add_tokens(["[THINK]", "[/THINK]"])
    assert traits(PLAIN, thinking).reasoning_marks == ("[THINK]", "[/THINK]")


def test_a_prompt_is_open_where_it_ends_with_the_first_mark():
    marks = ("<think>", "</think>")
    assert ends_open("x<think>\n\n", marks)
    assert not ends_open("<think>x", marks)
    assert not ends_open("<think></think>", marks)
    assert not ends_open(None, marks)
