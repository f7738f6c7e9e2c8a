"""Reasons to doubt a template: what is found, and what must not be."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from loaders.catalogue.model_card import ModelCard, read_model_card
from service.text.errors import ChatNotSupportedError
from service.text.facts import VariantFacts
from service.text.families import CHATML, CODELLAMA_70B, FAMILIES, LLAMA_2
from service.text.template_check import check_refusal, check_template
from service.text.templates import resolve_chat_template
from tests.service.text.conftest import SHARED, small_tokenizer

INSTRUCT_7B = "TheBloke/CodeLlama-7B-Instruct-GPTQ"
INSTRUCT_70B = "TheBloke/CodeLlama-70B-Instruct-AWQ"
# As tokenizers bring them; the marks are those of no family of ours.
TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
GOOD = "{{ bos_token }}" + TURNS + ASKED


@pytest.fixture
def findings(small, small_without_bos):
    """Check a template that a tokenizer brings, or that the family gives."""

    def check(
        source: str | None, repo: str = "model", card: ModelCard | None = None, *, bos: bool = True
    ) -> dict[str, str]:
        tokenizer = small if bos else small_without_bos
        return check_on(tokenizer, source, repo, card)

    return check


def check_on(tokenizer, source, repo, card=None) -> dict[str, str]:
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=source,
    )
    pieces = frozenset(own.added_tokens_encoder)
    facts = VariantFacts(repo=repo, model_type="llama", pieces=pieces, model_card=card)
    template = resolve_chat_template(own, facts)
    try:
        found = check_template(template, own, facts)
    finally:
        template.close()
    sentences = {finding.code: finding.sentence for finding in found}
    assert len(sentences) == len(found)  # none is told twice
    assert not any("\n" in sentence for sentence in sentences.values())
    return sentences


@pytest.fixture(scope="module")
def with_step():
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<step>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        # A thinking mode, in two ways.
        GOOD + "{% if add_generation_prompt %}<think>\n{% endif %}",
        "{{ bos_token }}" + TURNS.replace("{{ m.content }}", "<think></think>{{ m.content }}")
        + ASKED + "{% if add_generation_prompt %}<think>{% endif %}",
        # The model itself writes how the answer is opened.
        "{{ bos_token }}" + TURNS.replace("|>\n", "|><|final|>") + ASKED.replace("|>\n", "|>"),
        # One that always opens the answer.
        "{{ bos_token }}" + TURNS.replace("</s>", "<|end|><|next|>") + "<|assistant|>\n",
        # No system messages: refused, so not lost.
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + GOOD,
        # Only with another message are they written.
        "{{ bos_token }}{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
        "{{ m.content }}</s>{% endif %}{% endfor %}assistant: ",
    ],
)  # fmt: skip
def test_right_templates_raise_no_doubt(findings, source):
    assert findings(source) == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_our_families_raise_no_doubt(with_step, name):
    """With none of them the model's own name, so that each is looked at by itself."""
    assert check_on(with_step, "{{ bos_token }}" + FAMILIES[name].template, "model").keys() <= {
        "double_bos"
    }


@pytest.mark.parametrize(
    ("source", "code", "told"),
    [
        (GOOD.replace("{{ bos_token }}", ""), "missing_bos", "writes no <s>"),
        ("<s>" + GOOD, "double_bos", "begins with 2 times <s>, once was expected"),
        (
            "{{ bos_token }}{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>"
            "{{ m.content }}{% endfor %}<|assistant|>",
            "lost_system",
            "leaves system messages out",
        ),
        ("{{ bos_token }}" + TURNS, "wrong_final_turn", "ends a dialog with '</s>', but begins"),
        (
            "{{ bos_token }}" + TURNS + "{% if add_generation_prompt %}<|user|>{% endif %}",
            "wrong_final_turn",
            "not told that it is its turn",
        ),
        (
            "{{ bos_token }}{{ messages[0].content }}{{ messages[-1].content }}",
            "lost_text",
            "leaves out the assistant's message",
        ),
        (
            "{{ bos_token }}{{ messages[-1].content }}" + TURNS + ASKED,
            "doubled_text",
            "writes the user's last message more than once",
        ),
        (
            "{% if messages | length == 1 %}{{ raise_exception('too short') }}{% endif %}" + GOOD,
            "refuses_dialog",
            "refuses a dialog of one user's message",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ messages.x.y }}{% endif %}" + GOOD,
            "fails",
            "rendering a dialog of a few words failed",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(findings, source, code, told):
    found = findings(source)
    assert list(found) == [code]
    assert told in found[code]
    assert "chat_template" in found[code] or "mend the template" in found[code]


def test_a_missing_bos_that_is_added_here_asks_nobody_to_do_anything(findings):
    """Templates of ChatML's kind are right to write none, and many tokenizers add it."""
    told = findings(GOOD.replace("{{ bos_token }}", ""))["missing_bos"]
    assert "it is put before dialogs here, as before texts, so nothing need be done" in told
    assert "mend" not in told


def test_a_tokenizer_without_bos_misses_none(findings):
    assert findings(TURNS + ASKED, bos=False) == {}


def test_a_template_that_differs_from_its_familys_is_told_with_the_place(findings):
    without_spaces = LLAMA_2.template.replace("' [/INST]'", "'[/INST]'")
    assert findings(LLAMA_2.template, INSTRUCT_7B) == {}
    found = findings(without_spaces, INSTRUCT_7B)
    assert list(found) == ["differs_from_family"]
    assert "[/INST]" in found["differs_from_family"]
    assert "'llama-2'" in found["differs_from_family"]


def test_another_format_on_a_vocabulary_with_chatml_pieces_is_no_difference(findings):
    assert findings(GOOD, "someone/other-instruct") == {}
    changed = CHATML.template.replace("message.role + '\\n'", "message.role + ': '")
    assert "differs_from_family" in findings("{{ bos_token }}" + changed, "someone/other-instruct")


def test_codellama_70b_with_the_template_of_the_small_ones_is_told(with_step):
    found = check_on(with_step, LLAMA_2.template, INSTRUCT_70B)
    assert "CodeLlama 70B Instruct" in found["differs_from_family"]


# Model cards


def read_card(number: str) -> ModelCard:
    file = next((SHARED / "cards").glob(f"{number}_*.txt"), None)
    if file is None:
        pytest.skip(f"no card {number} in the folder beside the checkout")
    return read_model_card(file.read_bytes())


@pytest.mark.parametrize("source", [None, LLAMA_2.template])
def test_a_task_in_the_cards_block_is_a_part_of_the_users_text(findings, source):
    assert findings(source, INSTRUCT_7B, read_card("000")) == {}


@pytest.mark.parametrize("number", ["002", "003"])
@pytest.mark.parametrize("source", [None, CODELLAMA_70B.template])
def test_the_card_of_codellama_70b_leaves_out_what_its_answers_follow(with_step, number, source):
    found = check_on(with_step, source, INSTRUCT_70B, read_card(number))
    assert list(found) == ["card_differs"]
    assert "shows '<step>Source:assistant' after the user's text" in found["card_differs"]
    assert "writes '<step>Source:assistantDestination:user' there" in found["card_differs"]
    assert "the one in use" in found["card_differs"]


def test_the_card_of_a_base_model_is_not_to_be_followed():
    facts = VariantFacts(
        repo="TheBloke/CodeLlama-13B-Python-GGUF",
        model_type="llama",
        model_card=read_card("001"),
    )
    (finding,) = check_refusal(facts)
    assert finding.code == "card_of_base_model"
    assert "[INST] Write code" in finding.sentence


@pytest.mark.parametrize(
    ("repo", "block"),
    [
        ("TheBloke/CodeLlama-34B-fp16", None),
        ("TheBloke/CodeLlama-34B-fp16", "no place for a prompt"),
        ("unknown/model", "USER: {prompt} ASSISTANT:"),
    ],
)
def test_other_cards_of_models_that_cannot_chat_are_not_doubted(repo, block):
    facts = VariantFacts(repo=repo, model_type="llama", model_card=ModelCard(template_text=block))
    assert check_refusal(facts) == ()
    with pytest.raises(ChatNotSupportedError):
        resolve_chat_template(small_tokenizer(), facts)


@pytest.mark.parametrize(
    "block",
    [
        "<|user|>\n{prompt}</s>\n<|assistant|>\n",
        "<|system|>\n</s>\n<|user|>\n{prompt}</s>\n<|assistant|>",
        "<|system|>\n{system_message}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>",
        "<s><|user|> {prompt}</s> <|assistant|>",
        "<|user|>\nSolve this:\n{prompt}</s>\n<|assistant|>",
        "{prompt}",
        "no place for one",
    ],
)
def test_cards_that_show_the_same_raise_no_doubt(findings, block):
    assert findings(GOOD, card=ModelCard(template_text=block)) == {}


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("USER: {prompt} ASSISTANT:", "shows 'USER:' before the user's text"),
        ("<|user|>\n{prompt}</s>\n", "shows '</s>' after the user's text"),
        ("{system} USER: {prompt}", "shows '{system_message}USER:' before the user's text"),
    ],
)
def test_a_card_that_shows_another_block_is_told(findings, block, told):
    found = findings(GOOD, card=ModelCard(template_text=block))
    assert list(found) == ["card_differs"]
    assert told in found["card_differs"]
