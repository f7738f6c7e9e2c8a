"""What the variant's own template makes of a dialogue; what it does not read is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from service.text.templates import ChatTemplate
from tests.service.fakes import LIMITS, MODEL, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = (
    "{{ bos_token }}{% for d in documents or [] %}{{ d.title }}={{ d.text }};{% endfor %}"
    "{% for m in messages %}{{ m.role }}{% if m.name %}({{ m.name }}){% endif %}:"
    "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{{ style | default('') }}"
    "{{ reasoning_effort | default('') }}{% endif %}"
)
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}assistant:"
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def asks(tiny_tokenizer) -> Iterator[Callable[..., tuple[httpx.Response, str]]]:
    """Ask servers with the rich template and with the plain one; see what the engine was given."""
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    templates = {
        "rich": ChatTemplate(tiny_tokenizer, name="rich", source=SOURCE),
        "plain": ChatTemplate(tiny_tokenizer, name="plain", source=PLAIN),
    }
    strict = replace(LIMITS, unknown_fields="strict")
    with (
        running_server(engine, tiny_tokenizer, chat_template=templates["rich"]) as rich,
        running_server(engine, tiny_tokenizer, chat_template=templates["plain"]) as plain,
        running_server(
            engine, tiny_tokenizer, chat_template=templates["plain"], limits=strict
        ) as strict_plain,
    ):
        urls = {"rich": rich.url, "plain": plain.url, "strict": strict_plain.url}

        def ask(which: str, **fields: Any) -> tuple[httpx.Response, str]:
            body = {"model": MODEL, "messages": [USER], **fields}
            response = httpx.post(f"{urls[which]}/v1/chat/completions", json=body, timeout=30)
            return response, tiny_tokenizer.decode(engine.submitted[-1][0][1:])

        yield ask
    for template in templates.values():
        template.close()


def rendered(asks, **fields: object) -> str:
    response, text = asks("rich", **fields)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    return text


def test_a_dialogue_ends_where_the_assistant_speaks_unless_it_is_not_to(asks):
    assert rendered(asks) == "user:hi\nassistant:"
    assert rendered(asks, add_generation_prompt=True) == "user:hi\nassistant:"
    assert rendered(asks, add_generation_prompt=False) == "user:hi\n"


@pytest.mark.parametrize("by_prefix", [False, True])
def test_the_last_message_may_be_the_beginning_of_the_answer(asks, by_prefix):
    begun = {"role": "assistant", "content": "Sure, "}
    if by_prefix:
        fields = {"messages": [USER, {**begun, "prefix": True}]}
    else:
        fields = {"messages": [USER, begun], "continue_final_message": True}
    assert rendered(asks, **fields) == "user:hi\nassistant:Sure, "
    assert rendered(asks, **fields, add_generation_prompt=False) == "user:hi\nassistant:Sure, "
    response, _ = asks("rich", **fields, add_generation_prompt=True)
    assert response.json()["error"]["param"] == "add_generation_prompt"


def test_only_an_assistants_last_message_can_be_continued(asks):
    response, _ = asks("rich", continue_final_message=True)
    assert (response.status_code, response.json()["error"]["param"]) == (
        400,
        "continue_final_message",
    )
    for messages, place in (
        ([{**USER, "prefix": True}], 0),
        ([{"role": "assistant", "content": "a", "prefix": True}, USER], 0),
    ):
        response, _ = asks("rich", messages=messages)
        assert response.json()["error"]["param"] == f"messages.{place}.prefix"


def test_arguments_reach_the_template_and_others_are_named(asks):
    assert rendered(asks, chat_template_kwargs={"style": "terse"}).endswith("assistant:terse")
    response, text = asks("rich", chat_template_kwargs={"style": "x", "thinking": True, "n": None})
    assert text.endswith("assistant:x")
    assert response.headers["x-ignored-params"] == "chat_template_kwargs.thinking"
    response, _ = asks("strict", chat_template_kwargs={"thinking": True})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    "name", ["messages", "bos_token", "add_generation_prompt", "chat_template", "raise_exception"]
)
def test_arguments_never_replace_what_is_the_servers(asks, name):
    response, text = asks("rich", chat_template_kwargs={name: "x"})
    assert text == "user:hi\nassistant:"
    assert response.headers["x-ignored-params"] == f"chat_template_kwargs.{name}"


def test_wrong_arguments_are_refused(asks):
    for kwargs in ([1], "x", {"style": []}, {"style": {}}, {f"k{i}": 1 for i in range(65)}):
        response, _ = asks("rich", chat_template_kwargs=kwargs)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("chat_template_kwargs")


def test_reasoning_effort_goes_to_a_template_that_takes_it_and_is_named_else(asks):
    assert rendered(asks, reasoning_effort="low").endswith("assistant:low")
    response, _ = asks("plain", reasoning_effort="low")
    assert response.headers["x-ignored-params"] == "reasoning_effort"


def test_documents_are_cited_by_templates_that_do_and_refused_by_others(asks):
    documents = [{"title": "A", "text": "one"}, {"title": "B", "text": "two"}]
    assert rendered(asks, documents=documents).startswith("A=one;B=two;user:")
    response, _ = asks("plain", documents=documents)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "documents")
    assert asks("plain", documents=[])[0].status_code == 200


@pytest.mark.parametrize(
    "thoughts",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": None},
        {"reasoning_content": "", "reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": "hm"},
    ],
)
def test_names_and_reasoning_reach_a_template_that_writes_them(asks, thoughts):
    messages = [
        {**USER, "name": "ann"},
        {"role": "assistant", "content": "yes", **thoughts},
        USER,
    ]
    assert rendered(asks, messages=messages) == (
        "user(ann):hi\nassistant:<hm>yes\nuser:hi\nassistant:"
    )
    response, text = asks("plain", messages=messages)
    named = ["name", *(name for name in ("reasoning_content", "reasoning") if thoughts.get(name))]
    assert response.headers["x-ignored-params"] == ", ".join(f"messages[].{name}" for name in named)
    assert text == "user:hi\nassistant:yes\nuser:hi\nassistant:"
    assert asks("strict", messages=messages)[0].status_code == 400


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"documents": [1] * 65}, "documents: has 65 items; give at most 64"),
        (
            {"documents": [{str(i): 1 for i in range(65)}]},
            "documents.0: has 65 items; give at most 64",
        ),
        (
            {"chat_template_kwargs": {str(i): [] for i in range(65)}},
            "chat_template_kwargs: has 65 items; give at most 64",
        ),
    ],
)
def test_items_are_counted_before_they_are_looked_at(asks, fields, found):
    """Else each of a million wrong ones would be described."""
    response, _ = asks("rich", **fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == found
