"""A template's marks show how its model calls."""

from __future__ import annotations

import pytest

from service.tools.formats import (
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_BY_NAME,
    format_of,
)

HERMES_LIKE = """{%- for tool in tools %}{{ tool | tojson }}{% endfor %}
{{ '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{ call.arguments | tojson }}
{{ '}\\n</tool_call>' }}"""


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (HERMES_LIKE, HERMES),
        ("<tool_call>\n<function=' + call.name + '>\n<parameter=", GENERIC),
        ("<tool_call>{{ call.name }}\n<arg_key>", GENERIC),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS] [{% for call", MISTRAL),
        ("[TOOL_CALLS]' + call.name + '[ARGS]' + arguments", MISTRAL_BY_NAME),
        ("<|start_header_id|> {{ '\"parameters\": ' }}", LLAMA3),
        ("{{ '<|python_tag|>' + call.name }}", LLAMA3),
        ("functools[{{ tools }}]", GENERIC),
    ],
)
def test_format_is_that_of_the_template(template, found):
    assert format_of(template, takes_tools=True) is found


def test_template_that_takes_no_tools_is_given_them_in_words():
    assert format_of(HERMES_LIKE, takes_tools=False) is GENERIC


@pytest.mark.parametrize("one", [HERMES, LLAMA3, MISTRAL, MISTRAL_BY_NAME, GENERIC])
def test_reader_of_a_format_looks_for_its_marks(one):
    assert one.new_reader(["x"]).mark == one.marks[0]
