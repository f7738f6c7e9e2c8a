"""Facts gathered from a folder, a config and a tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

from loaders.catalogue.model_card import ModelCard
from service.text.facts import MAX_CARD_BYTES, VariantFacts, read_facts


def test_facts_are_read_from_what_there_is(tmp_path, small):
    (tmp_path / "README.md").write_text("---\nmodel_name: CodeLlama 7B\n---\n")
    config = SimpleNamespace(model_type="llama", vocab_size=32016, num_hidden_layers=32)
    assert read_facts(tmp_path, "owner/name", config, small) == VariantFacts(
        repo="owner/name",
        model_type="llama",
        vocab_size=32016,
        num_hidden_layers=32,
        pieces=frozenset({"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|EOT|>", "<think>"}),
        model_card=ModelCard(model_name="CodeLlama 7B"),
    )


def test_missing_numbers_and_cards_are_none(tmp_path, small):
    facts = read_facts(tmp_path, "name", SimpleNamespace(model_type="x"), small)
    assert (facts.vocab_size, facts.num_hidden_layers, facts.model_card) == (None, None, None)


def test_a_huge_or_broken_card_is_read_in_part(tmp_path, small):
    beginning = b"---\nmodel_name: A\n---\n\xff\xfe"
    (tmp_path / "README.md").write_bytes(beginning + b"x" * 2 * MAX_CARD_BYTES)
    facts = read_facts(tmp_path, "name", SimpleNamespace(model_type="x"), small)
    assert facts.model_card == ModelCard(model_name="A")


def test_a_card_that_lies_elsewhere_is_none(tmp_path, small):
    (tmp_path / "secret").write_text("---\nmodel_name: A\n---\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "secret")
    facts = read_facts(tmp_path / "model", "name", SimpleNamespace(model_type="x"), small)
    assert facts.model_card is None


def test_names_are_plain_and_without_owners():
    card = ModelCard(model_name="CodeLlama 7B Instruct", base_model="codellama/CodeLlama-7b-hf/")
    facts = VariantFacts(repo="TheBloke/CodeLlama_7B-GPTQ", model_type="llama", model_card=card)
    assert facts.names == ["codellama-7b-gptq", "codellama-7b-instruct", "codellama-7b-hf"]
