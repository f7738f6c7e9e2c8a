"""What is sent beside the messages: arguments, documents, names, answers to be continued."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.text.errors import InvalidMessagesError, InvalidTemplateOptionsError
from service.text.families import (
    ALPACA,
    CHATML,
    CODELLAMA_70B,
    DEEPSEEK_CODER,
    FAMILIES,
    LLAMA_2,
    MISTRAL,
)
from service.text.render_options import RenderOptions
from service.text.templates import ChatTemplate

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
CONTINUED = RenderOptions(continue_final_message=True)
CLOSED = RenderOptions(add_generation_prompt=False)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
THINKING = (
    PLAIN + "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{{ '<think>' if enable_thinking }}{{ style | default('') }}"
)
CITING = "{% for d in documents or [] %}{{ d.title }}: {{ d.text }}\n{% endfor %}" + PLAIN


def asked(content: str, answer: str | None = None, **fields: str) -> list[dict[str, str]]:
    user = {"role": "user", "content": content}
    return [user] if answer is None else [user, {"role": "assistant", "content": answer, **fields}]


def kwargs(**values) -> RenderOptions:
    return RenderOptions(template_kwargs=values)


# Arguments


def test_the_templates_own_variables_can_be_set(small, chat_template):
    template = chat_template(small, THINKING)
    assert template.kwargs_names == {"enable_thinking", "style"}
    assert template.render_text(asked("Hi")) == "user: Hi\n<think>"
    assert template.render_text(asked("Hi"), kwargs(enable_thinking=False, style="terse")) == (
        "user: Hi\nterse"
    )


@pytest.mark.parametrize("name", ["thinking", "messages", "bos_token", "add_generation_prompt"])
def test_no_others_can(small, chat_template, name):
    template = chat_template(small, THINKING + "{{ bos_token }}{{ add_generation_prompt }}")
    with pytest.raises(InvalidTemplateOptionsError, match="it takes: enable_thinking, style"):
        template.render(asked("Hi"), kwargs(**{name: "x"}))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        # What a template always sets before it reads it is its own.
        ("{% if messages %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}", set()),
        ("{% set a = a or 1 %}{{ a }}", {"a"}),
        ("{% for a in a %}{{ a }}{{ loop.index }}{% endfor %}", {"a"}),
        ("{% for a in messages %}{{ a }}{% endfor %}{{ a }}", {"a"}),
        ("{% macro m(a) %}{{ a }}{{ b }}{{ caller }}{% endmacro %}{{ m(1) }}", {"b"}),
        ("{{ namespace(x=1).x }}{{ range(3) }}{{ strftime_now('%Y') }}", set()),
    ],
)
def test_what_counts_is_what_is_read_before_it_is_set(small, chat_template, source, names):
    assert chat_template(small, source).kwargs_names == names


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_our_families_take_no_arguments(small, chat_template, family):
    template = chat_template(small, family)
    assert template.kwargs_names == frozenset()
    assert not any(template.reads(name) for name in ("documents", "name", "reasoning_content"))


def test_the_templates_of_real_tokenizers_take_what_they_read(smollm2, qwen2):
    for tokenizer in (smollm2, qwen2):
        template = ChatTemplate(tokenizer, name="own", source=tokenizer.chat_template)
        assert template.kwargs_names == frozenset()
        template.close()


def test_pieces_typed_in_arguments_and_documents_are_text(small, chat_template):
    template = chat_template(small, "{{ style }}" + CITING)
    attack = "</s><|im_start|>"
    options = RenderOptions(
        template_kwargs={"style": attack}, documents=[{"title": attack, "text": attack}]
    )
    text = f"{attack}{attack}: {attack}\nuser: Hi\n"
    assert template.render(asked("Hi"), options) == [small.bos_token_id, *text.encode()]
    assert template.render_text(asked("Hi"), options) == text


def test_what_a_document_is_called_is_typed_too(small, chat_template):
    source = "{% for d in documents or [] %}{% for k in d.items() %}{{ k | join }}{% endfor %}"
    source += "{% endfor %}"
    options = RenderOptions(documents=[{"</s>": "<s>"}])
    ids = chat_template(small, source).render(asked("Hi"), options)
    assert ids == [small.bos_token_id, *b"</s><s>"]


# Documents, names, reasoning


def test_documents_reach_templates_that_use_them(small, chat_template):
    template = chat_template(small, CITING)
    options = RenderOptions(documents=[{"title": "a", "text": "b"}])
    assert template.reads("documents")
    assert template.render_text(asked("Hi"), options) == "a: b\nuser: Hi\n"
    assert template.render_text(asked("Hi")) == "user: Hi\n"
    with pytest.raises(InvalidTemplateOptionsError, match="does not use them"):
        chat_template(small, PLAIN).render(asked("Hi"), options)


def test_names_and_reasoning_reach_templates_that_read_them(small, chat_template):
    source = (
        "{% for m in messages %}{{ m.name }}{{ m.reasoning_content }}: {{ m.content }}\n"
        "{% endfor %}"
    )
    dialogue = [{**asked("Hi")[0], "name": "Ada"}, *asked("", "Yes", reasoning="since")[1:]]
    template = chat_template(small, source)
    assert template.reads("name")
    assert template.reads("reasoning_content")
    assert template.render_text(dialogue) == "Ada: Hi\nsince: Yes\n"
    plain = chat_template(small, PLAIN)
    assert not plain.reads("name")
    assert not plain.reads("reasoning_content")
    assert plain.render_text(dialogue) == "user: Hi\nassistant: Yes\n"


def test_a_tools_name_is_not_a_messages(small, chat_template):
    source = PLAIN + "{% for tool in tools or [] %}{{ tool.name }}{% endfor %}"
    assert not chat_template(small, source).reads("name")


def test_pieces_typed_in_names_and_reasoning_are_text(small, chat_template):
    source = "{% for m in messages %}{{ m.name }}{{ m.reasoning_content }}{% endfor %}"
    dialogue = [{"role": "user", "content": "", "name": "</s>", "reasoning_content": "<s>"}]
    ids = chat_template(small, source).render(dialogue)
    assert ids == [small.bos_token_id, *b"</s><s>"]


# Without an opening for the answer


@pytest.mark.parametrize(
    ("family", "end"),
    [
        (LLAMA_2, "Hi [/INST]"),
        (CODELLAMA_70B, "Source: user\n\n Hi <step> "),
        (CHATML, "Hi<|im_end|>\n"),
        (MISTRAL, "Hi [/INST]"),
        (DEEPSEEK_CODER, "Hi\n"),
        (ALPACA, "Hi\n\n"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_families_leave_the_answers_opening_out_where_it_is_not_wanted(
    small, chat_template, family, end
):
    assert chat_template(small, family).render_text(asked("Hi"), CLOSED).endswith(end)


# Answers to be continued


@pytest.mark.parametrize(
    ("family", "opening"),
    [
        (LLAMA_2, "[INST] Hi [/INST] "),
        (CODELLAMA_70B, " Hi <step> Source: assistant\nDestination: user\n\n "),
        (CHATML, "Hi<|im_end|>\n<|im_start|>assistant\n"),
        (MISTRAL, "[INST] Hi [/INST] "),
        (DEEPSEEK_CODER, "Hi\n### Response:\n"),
        (ALPACA, "Hi\n\n### Response:\n"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("answer", ["Sure, here", "Sure, here ", "Sure:\n\n", "a</s>b"])
def test_the_text_ends_exactly_with_the_answer(small, chat_template, family, opening, answer):
    template = chat_template(small, family)
    assert template.render_text(asked("Hi", answer), CONTINUED).endswith(opening + answer)
    assert template.render(asked("Hi", answer), CONTINUED)[-len(answer.encode()) :] == [
        *answer.encode()
    ]


VOCABULARIES = [
    ("llama_2", MISTRAL),
    ("codellama", LLAMA_2),
    ("codellama_70b", CODELLAMA_70B),
    ("deepseek_coder", DEEPSEEK_CODER),
    ("llama_2", ALPACA),
    ("qwen2", CHATML),
    ("smollm2", CHATML),
]


@pytest.fixture(scope="module", params=VOCABULARIES, ids=lambda pair: f"{pair[0]}-{pair[1].name}")
def family_on_vocabulary(request):
    name, family = request.param
    tokenizer = request.getfixturevalue(name)
    template = ChatTemplate(tokenizer, name=family.name, source=family.template)
    yield tokenizer, template
    template.close()


words = st.lists(st.sampled_from(["Sure", "here", "é", "😀", "</s>", "def f(x):", "1"]), min_size=1)


@given(answer=words.map(" ".join), system=st.booleans())
@with_vocabulary
def test_the_ids_are_those_of_the_whole_dialogue_up_to_there(family_on_vocabulary, answer, system):
    _, template = family_on_vocabulary
    dialogue = [{"role": "system", "content": "x"}] * system + asked("Hi", answer)
    whole = template.render(dialogue, CLOSED)
    begun = template.render(dialogue, CONTINUED)
    assert len(begun) < len(whole)
    assert whole[: len(begun)] == begun


def test_white_space_behind_it_is_continued_too(family_on_vocabulary):
    tokenizer, template = family_on_vocabulary
    without = template.render(asked("Hi", "Sure, here"), CONTINUED)
    ids = template.render(asked("Hi", "Sure, here "), CONTINUED)
    assert ids[: len(without)] == without
    assert tokenizer.convert_ids_to_tokens(ids[len(without) :]) in (["▁"], ["Ġ"])


def test_its_opening_is_the_one_after_which_the_model_speaks(family_on_vocabulary):
    _, template = family_on_vocabulary
    asked_for = template.render_text(asked("Hi"))
    assert template.render_text(asked("Hi", "Sure"), CONTINUED).startswith(asked_for)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_an_empty_answer_is_begun_as_without_it(small, chat_template, family):
    template = chat_template(small, family)
    assert template.render(asked("Hi", ""), CONTINUED) == template.render(asked("Hi"))


def test_templates_of_tokenizers_continue_too(smollm2):
    template = ChatTemplate(smollm2, name="own", source=smollm2.chat_template)
    text = template.render_text(asked("Hi", "Sure, here "), CONTINUED)
    assert text.endswith("Hi<|im_end|>\n<|im_start|>assistant\nSure, here ")
    template.close()


def test_one_that_ignores_what_is_wanted_at_the_end_continues_too(small, chat_template):
    template = chat_template(small, PLAIN + "assistant: ")
    text = template.render_text(asked("Hi", "Sure"), CONTINUED)
    assert text == "user: Hi\nassistant: Sure"


def test_the_users_message_is_not_continued(small, chat_template):
    with pytest.raises(InvalidTemplateOptionsError, match="ends with role 'user'") as error:
        chat_template(small, CHATML).render(asked("Hi"), CONTINUED)
    assert error.value.param == "continue_final_message"


def test_a_template_that_takes_no_answer_last_says_so(small, chat_template):
    source = "{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}{% endif %}"
    with pytest.raises(
        InvalidMessagesError, match=r"user last\. It takes no dialog that ends with"
    ):
        chat_template(small, source + PLAIN).render(asked("Hi", "Sure"), CONTINUED)


def test_a_dialogue_out_of_order_is_told_as_that_also_when_it_is_to_be_continued(
    small, chat_template
):
    dialogue = [*asked("Hi"), *asked("Hi", "Sure")]
    with pytest.raises(InvalidMessagesError, match=r"messages\[1\] is of role 'user'"):
        chat_template(small, LLAMA_2).render(dialogue, CONTINUED)


def test_a_template_that_leaves_the_answer_out_cannot_continue_it(small, chat_template):
    template = chat_template(small, "{{ messages[0].content }}")
    with pytest.raises(InvalidMessagesError, match="chat template leaves it out"):
        template.render(asked("Hi", "Sure"), CONTINUED)


# All at once


def test_64_threads_with_different_options_get_what_one_gets(small, chat_template):
    template = chat_template(small, "{{ style }}" + CITING + "{{ add_generation_prompt }}")
    requests = [
        (
            asked(f"question {n}" + "</s>" * (n % 3), f"answer {n} "),
            RenderOptions(
                add_generation_prompt=n % 2 == 0,
                continue_final_message=n % 4 == 1,
                template_kwargs={"style": f"style {n}<s>"} if n % 5 else {},
                documents=[{"title": f"title {n}", "text": "</s>"}] if n % 3 else None,
            ),
        )
        for n in range(256)
    ]
    expected = [template.render(*request) for request in requests]
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(lambda request: template.render(*request), requests)) == expected
