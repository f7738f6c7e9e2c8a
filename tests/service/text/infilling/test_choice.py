"""Which variant infills as which family, and which can't; each rule with what it must not catch."""

from __future__ import annotations

import pytest

from loaders.catalogue.model_card import ModelCard
from service.text.errors import InfillingNotSupportedError
from service.text.facts import VariantFacts
from service.text.infilling.choice import choose_family, every_piece
from service.text.infilling.families import (
    CODEGEMMA,
    CODELLAMA,
    CODESTRAL,
    DEEPSEEK,
    QWEN_CODER,
    SANTACODER,
    STARCODER,
    InfillFamily,
)


def facts(repo="model", *, layers=None, rows=None, **model_card) -> VariantFacts:
    return VariantFacts(
        repo=repo,
        model_type="llama",
        num_hidden_layers=layers,
        vocab_size=rows,
        model_card=ModelCard(**model_card) if model_card else None,
    )


def ids(family: InfillFamily, start=100) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(family.pieces, start)}


def refusal(given: VariantFacts, pieces: dict[str, int]) -> str:
    with pytest.raises(InfillingNotSupportedError) as error:
        choose_family(given, pieces)
    assert "Use /v1/completions without a suffix" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("repo", "family"),
    [
        ("TheBloke/CodeLlama-7B-GPTQ", CODELLAMA),
        ("TheBloke/CodeLlama-13B-Instruct-AWQ", CODELLAMA),
        ("codellama/CodeLlama-7b-hf", CODELLAMA),
        ("TheBloke/deepseek-coder-6.7B-instruct-GPTQ", DEEPSEEK),
        ("deepseek-ai/DeepSeek-Coder-V2-Lite-Base", DEEPSEEK),
        ("deepseek-ai/DeepSeek-V2.5", DEEPSEEK),
        ("bigcode/starcoder2-7b", STARCODER),
        ("ibm-granite/granite-8b-code-base-4k", STARCODER),
        ("anything", STARCODER),
        ("bigcode/santacoder", SANTACODER),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-GPTQ-Int4", QWEN_CODER),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", QWEN_CODER),
        ("mistralai/Codestral-22B-v0.1", CODESTRAL),
        ("google/codegemma-7b", CODEGEMMA),
    ],
)
def test_variants_that_infill(repo, family):
    assert choose_family(facts(repo), ids(family)) is family


@pytest.mark.parametrize(
    ("repo", "layers", "reason"),
    [
        ("TheBloke/CodeLlama-34B-GPTQ", 48, "only 7B and 13B were trained to, and this is 34B"),
        ("TheBloke/CodeLlama-34B-Instruct-GPTQ", None, "this is 34B"),
        ("TheBloke/CodeLlama-70B-Instruct-GPTQ", 80, "this is 70B"),
        ("TheBloke/CodeLlama-7B-Python-GPTQ", 32, "Python models were not trained to"),
        ("TheBloke/CodeLlama-13B-Python-AWQ", None, "Python models were not trained to"),
        ("my-folder", 48, "this is 34B"),
    ],
)
def test_codellama_that_cannot_infill_though_its_tokenizer_has_the_pieces(repo, layers, reason):
    assert reason in refusal(facts(repo, layers=layers), ids(CODELLAMA))


def test_codellama_without_the_pieces_gets_the_same_reason():
    message = refusal(facts("TheBloke/CodeLlama-34B-GPTQ", layers=48), {})
    assert message.startswith("TheBloke/CodeLlama-34B-GPTQ cannot infill: of CodeLlama only")


def test_a_folder_of_any_name_is_codellama_by_pieces_and_layers():
    assert choose_family(facts("my-folder", layers=32), ids(CODELLAMA)) is CODELLAMA


def test_pieces_for_which_the_model_has_no_rows_are_not_its_own():
    """CodeLlama's Python models have 32000 rows, and tokenizers of 32016 pieces beside them."""
    message = refusal(facts("my-folder", layers=32, rows=32000), ids(CODELLAMA, 32007))
    assert "the model has only 32000 rows" in message
    assert choose_family(facts("f", rows=32016), ids(CODELLAMA, 32007)) is CODELLAMA


@pytest.mark.parametrize(
    ("repo", "family"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", QWEN_CODER),
        ("mistralai/Mistral-Nemo-Base-2407", CODESTRAL),
        ("deepseek-ai/DeepSeek-V2-Lite", DEEPSEEK),
    ],
)
def test_pieces_that_general_models_have_too_say_nothing_without_a_name(repo, family):
    message = refusal(facts(repo), ids(family))
    assert "models that were not trained on them have them too" in message
    assert "model card's base_model" in message


def test_the_model_card_may_name_what_a_folder_does_not():
    given = facts("my-folder", base_model="Qwen/Qwen2.5-Coder-7B")
    assert choose_family(given, ids(QWEN_CODER)) is QWEN_CODER


def test_codegemmas_instruction_model_is_for_chat():
    assert "published for chat alone" in refusal(facts("google/codegemma-7b-it"), ids(CODEGEMMA))


def test_a_tokenizer_without_pieces_infills_nothing():
    assert "no pieces that mark a gap" in refusal(facts("owner/Llama-2-7B"), {"</s>": 2})


def test_pieces_for_a_gap_alone_are_of_no_known_family():
    pieces = {"<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3}
    assert "no pieces that mark a gap" in refusal(facts("microsoft/phi-4"), pieces)


def test_every_piece_of_every_family_is_looked_for():
    assert every_piece() >= {"▁<EOT>", "<｜fim▁hole｜>", "<fim-middle>", "<|file_separator|>"}
