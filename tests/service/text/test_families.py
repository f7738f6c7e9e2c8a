"""Which variant gets whose template; each rule with what it must not catch."""

from __future__ import annotations

import pytest

from loaders.catalogue.model_card import ModelCard
from service.text.errors import ChatNotSupportedError
from service.text.facts import VariantFacts
from service.text.families import (
    ALPACA,
    CHATML,
    CODELLAMA_70B,
    DEEPSEEK_CODER,
    LLAMA_2,
    MISTRAL,
    decide_family,
)

STEP, CHATML_PIECES, EOT = {"<step>"}, {"<|im_start|>", "<|im_end|>"}, {"<|EOT|>"}
INST_BLOCK = "[INST] Write code to solve the following coding problem\n{prompt}\n[/INST]"
ALPACA_BLOCK = "### Instruction:\n{prompt}\n\n### Response:\n"


def facts(
    repo="model", *, model_type="llama", pieces=(), layers=None, **model_card
) -> VariantFacts:
    return VariantFacts(
        repo=repo,
        model_type=model_type,
        num_hidden_layers=layers,
        pieces=frozenset(pieces),
        model_card=ModelCard(**model_card) if model_card else None,
    )


@pytest.mark.parametrize(
    ("repo", "pieces", "family"),
    [
        ("TheBloke/CodeLlama-7B-Instruct-GPTQ", (), LLAMA_2),
        ("codellama/CodeLlama-34b-Instruct-hf", (), LLAMA_2),
        ("CodeLlama-7B-Instruct-GPTQ_gptq-4bit-32g-actorder_True", (), LLAMA_2),
        ("/models/CodeLlama-13B-Instruct-fp16/", (), LLAMA_2),
        ("TheBloke/CodeLlama-70B-Instruct-AWQ", STEP, CODELLAMA_70B),
        ("TheBloke/Llama-2-13B-chat-GPTQ", (), LLAMA_2),
        ("meta-llama/Llama-2-7b-chat-hf", (), LLAMA_2),
        ("TheBloke/Mistral-7B-Instruct-v0.1-AWQ", (), MISTRAL),
        ("TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ", (), MISTRAL),
        ("TheBloke/deepseek-coder-6.7B-instruct-GPTQ", EOT, DEEPSEEK_CODER),
        ("deepseek-ai/deepseek-coder-7b-instruct-v1.5", EOT, DEEPSEEK_CODER),
    ],
)
def test_publishers_own_names_decide(repo, pieces, family):
    assert decide_family(facts(repo, pieces=pieces)) is family


@pytest.mark.parametrize(
    ("repo", "label"),
    [
        ("TheBloke/CodeLlama-13B-Python-GPTQ", "CodeLlama Python"),
        ("codellama/CodeLlama-7b-Python-hf", "CodeLlama Python"),
        ("TheBloke/CodeLlama-34B-fp16", "CodeLlama"),
        ("codellama/CodeLlama-70b-hf", "CodeLlama"),
        ("TheBloke/Llama-2-7B-GPTQ", "Llama 2"),
        ("mistralai/Mistral-7B-v0.1", "Mistral"),
        ("deepseek-ai/deepseek-coder-6.7b-base", "DeepSeek-Coder Base"),
    ],
)
def test_a_base_model_refuses_chat_and_says_what_works(repo, label):
    with pytest.raises(ChatNotSupportedError) as refusal:
        decide_family(facts(repo, pieces={*STEP, *CHATML_PIECES, *EOT}))
    message = str(refusal.value)
    assert repo in message
    assert f"base model ({label})" in message
    assert "/v1/completions" in message
    assert "card" not in message


def test_a_card_that_is_wrong_for_its_model_is_not_believed():
    """CodeLlama Python's card shows an instruction block."""
    shown = facts("CodeLlama-13B-Python-GGUF", template_name="CodeLlama", template_text=INST_BLOCK)
    with pytest.raises(ChatNotSupportedError, match="card shows an instruction block, but"):
        decide_family(shown)


def test_the_cards_names_decide_where_the_folders_says_nothing():
    assert decide_family(facts("my-model", model_name="CodeLlama 7B Instruct")) is LLAMA_2
    by_base = facts("my-model", base_model="codellama/CodeLlama-70b-Instruct-hf", pieces=STEP)
    assert decide_family(by_base) is CODELLAMA_70B
    with pytest.raises(ChatNotSupportedError, match="my-model is a base model"):
        decide_family(facts("my-model", model_name="CodeLlama 13B Python"))


def test_the_repositorys_name_goes_before_the_cards():
    contradicting = facts("CodeLlama-7B-Instruct-GPTQ", model_name="CodeLlama 13B Python")
    assert decide_family(contradicting) is LLAMA_2


@pytest.mark.parametrize(
    "repo",
    [
        "TheBloke/Phind-CodeLlama-34B-v2-GPTQ",
        "TheBloke/CodeLlama-13B-oasst-sft-v10-GPTQ",
        "TheBloke/Llama-2-7B-32K-Instruct-GPTQ",
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
        "TheBloke/Mistral-7B-OpenOrca-GPTQ",
        "codellamas/other",
        "model",
    ],
)
def test_models_derived_from_a_family_are_not_taken_for_it(repo):
    with pytest.raises(ChatNotSupportedError, match=r"tell of a known one.*/v1/completions"):
        decide_family(facts(repo, pieces=EOT))


def test_the_shape_of_codellama_70b_instruct_tells_it():
    assert decide_family(facts("renamed", pieces=STEP, layers=80)) is CODELLAMA_70B
    for other in (facts("renamed", pieces=STEP, layers=32), facts("renamed", layers=80)):
        with pytest.raises(ChatNotSupportedError):
            decide_family(other)


@pytest.mark.parametrize(
    ("repo", "model_card"),
    [
        ("Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", {}),
        ("TheBloke/OpenHermes-2.5-Mistral-7B-GPTQ", {"template_name": "ChatML"}),
        ("someone/SmolLM2-135M-Instruct", {}),
    ],
)
def test_chatml_needs_its_pieces_and_a_word_that_the_model_chats(repo, model_card):
    assert decide_family(facts(repo, pieces=CHATML_PIECES, **model_card)) is CHATML
    with pytest.raises(ChatNotSupportedError):
        decide_family(facts(repo, **model_card))


def test_a_base_model_with_chatml_pieces_does_not_chat():
    with pytest.raises(ChatNotSupportedError):
        decide_family(facts("Qwen/Qwen2.5-Coder-7B", model_type="qwen2", pieces=CHATML_PIECES))


@pytest.mark.parametrize(
    ("model_card", "family"),
    [
        ({"template_name": "Alpaca"}, ALPACA),
        ({"template_text": ALPACA_BLOCK}, ALPACA),
        ({"template_name": "Llama-2-Chat"}, LLAMA_2),
        ({"template_name": "Mistral"}, MISTRAL),
    ],
)
def test_the_cards_template_counts_where_nothing_else_tells(model_card, family):
    assert decide_family(facts("TheBloke/WizardCoder-Python-13B-V1.0-GPTQ", **model_card)) is family


def test_a_family_whose_pieces_the_tokenizer_lacks_is_refused():
    with pytest.raises(ChatNotSupportedError, match="lacks <step>"):
        decide_family(facts("TheBloke/CodeLlama-70B-Instruct-AWQ"))
