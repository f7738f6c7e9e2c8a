"""The text side of a variant: where its answers come from, and what its small files give."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs
from transformers import PreTrainedTokenizerFast

from loaders.catalogue.model_card import ModelCard
from loaders.checkpoint.generation_defaults import GenerationDefaults
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from service.text.errors import InfillSettingError, TemplateSettingError
from service.text.facts import VariantFacts
from service.variants.text import check_chat, identity_of, read_model_text
from service.worker_protocol.model_description import ModelDescription
from tests.sentencepiece_models import train_sentencepiece

DESCRIPTION = ModelDescription(
    repo="owner/name",
    revision="main",
    commit="0123abc",
    folder="/somewhere",
    quantization="gptq 4-bit group 128",
    backend="int4pack",
    dtype="float32",
    device="cpu",
    is_batch_invariant=False,
    model_type="llama",
    vocab_size=512,
    num_hidden_layers=2,
    defaults=GenerationDefaults(0.6, 40, None, frozenset({1, 3})),
)


def changed(**fields: object) -> ModelDescription:
    return msgspec.structs.replace(DESCRIPTION, **fields)


def test_description_survives_the_border():
    assert ModelDescription.decode(DESCRIPTION.encode()) == DESCRIPTION


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "f00"},
        {"backend": "reference"},
        {"dtype": "bfloat16"},
        {"is_batch_invariant": True},
        {"arithmetic": "AVX512, 2 threads"},
    ],
)
def test_fingerprint_changes_with_whatever_may_change_an_answer(change):
    one = identity_of(DESCRIPTION, None)
    assert one.fingerprint == identity_of(DESCRIPTION, None).fingerprint
    assert identity_of(changed(**change), None).fingerprint != one.fingerprint
    moved = identity_of(changed(folder="/elsewhere"), None)
    assert moved.fingerprint == one.fingerprint


def test_identity_can_be_sent_as_headers():
    folder = changed(commit=None, revision=None)
    for value in identity_of(folder, None).headers.values():
        assert value
        value.encode("latin-1")


def test_text_is_read_from_the_folder_that_the_engine_names(tiny_repo):
    spec = parse_spec(tiny_repo.specs()[0])
    snapshot = open_snapshot(spec, cache_dir=tiny_repo.cache_dir, local_files_only=True)
    text = read_model_text(changed(folder=str(snapshot.folder)))
    try:
        assert text.chat_template is not None
        assert text.chat_template.render([{"role": "user", "content": "hi"}])
        assert text.chat_template.stop_token_ids == {3}
        assert text.identity.record["chat_template"] == "the tokenizer's own"
        assert text.infilling is None
        assert text.infilling_refusal is not None
        assert "cannot infill" in text.infilling_refusal
        assert text.identity.record["infilling"] is None
    finally:
        text.close()


def test_a_variant_that_infills_is_read_with_its_family(tmp_path):
    pieces = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(control_symbols=pieces))
    with capture_logs() as logs:
        text = read_model_text(changed(folder=str(tmp_path), vocab_size=1000))
    assert text.infilling is not None
    assert text.infilling_refusal is None
    assert text.identity.record["infilling"] == text.infilling.family == "StarCoder"
    told = [entry for entry in logs if entry["event"] == "infilling"]
    assert [entry["family"] for entry in told] == ["StarCoder"]
    without = identity_of(changed(folder=str(tmp_path), vocab_size=1000), None)
    assert text.identity.fingerprint != without.fingerprint


def test_the_order_that_the_operator_asks_for_counts_and_shows_in_the_fingerprint(tmp_path):
    pieces = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(control_symbols=pieces))
    folder = changed(folder=str(tmp_path), vocab_size=1000)
    own, same, other = (read_model_text(folder, None, order) for order in (None, "psm", "spm"))
    assert (own.infilling.order.value, other.infilling.order.value) == ("psm", "spm")
    assert other.identity.record["infill_order"] == "spm"
    assert own.identity.fingerprint == same.identity.fingerprint != other.identity.fingerprint


def test_an_order_that_is_not_there_fails_before_anything_is_started(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    monkeypatch.setattr("service.variants.text.check_chat", lambda *_: pytest.fail("started"))
    with pytest.raises(InfillSettingError, match="infill_order is 'spm', but owner/name cannot"):
        read_model_text(changed(folder=str(tmp_path), vocab_size=1000), None, "spm")


@pytest.fixture
def read_text(tiny_repo):
    """Read the text side of the tiny model, with the template that an operator asks for."""
    spec = parse_spec(tiny_repo.specs()[0])
    snapshot = open_snapshot(spec, cache_dir=tiny_repo.cache_dir, local_files_only=True)
    made = []

    def read(chat_template: str | None = None):
        made.append(read_model_text(changed(folder=str(snapshot.folder)), chat_template))
        return made[-1]

    yield read
    for text in made:
        text.close()


def test_the_operators_template_counts_and_shows_in_the_fingerprint(read_text, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    own, mine = read_text(), read_text(str(file))
    assert mine.chat_template.render_text([{"role": "user", "content": "Hi"}]) == "<s>user: Hi\n"
    assert mine.identity.record["chat_template"] == "mine.jinja"
    assert own.identity.fingerprint != mine.identity.fingerprint
    file.write_text(file.read_text() + "assistant: ")
    assert read_text(str(file)).identity.fingerprint != mine.identity.fingerprint


def test_a_family_can_be_asked_for(read_text):
    assert read_text("llama-2").chat_template.name == "Llama 2"


@pytest.mark.parametrize(
    ("asked", "told"),
    [("other", "tokenizer has default, and the families' are"), ("codellama-70b", "lacks <step>")],
)
def test_a_template_that_is_not_there_is_no_reason_to_take_another(read_text, asked, told):
    with pytest.raises(TemplateSettingError, match=told):
        read_text(asked)


def test_a_file_that_does_not_work_is_no_reason_to_take_another(read_text, tmp_path):
    file = tmp_path / "broken.jinja"
    file.write_text("{% if %}")
    with pytest.raises(TemplateSettingError, match=r"broken\.jinja', but the chat template failed"):
        read_text(str(file))


def test_doubts_about_a_template_are_kept_and_logged_once_each(read_text):
    """The tiny model's template writes no BOS, which its tokenizer puts before texts."""
    with structlog.testing.capture_logs() as lines:
        text = read_text()
    assert [finding.code for finding in text.template_findings] == ["missing_bos"]
    (line,) = (line for line in lines if line["event"] == "chat_template_doubtful")
    assert (line["log_level"], line["code"]) == ("warning", "missing_bos")
    assert line["reason"] == text.template_findings[0].sentence


def test_a_base_models_card_is_doubted_though_there_is_no_template(tiny_tokenizer):
    card = ModelCard(template_text="[INST] {prompt} [/INST]")
    facts = VariantFacts(repo="CodeLlama-13B-Python", model_type="llama", model_card=card)
    without = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    checked = check_chat(without, facts, None)
    assert checked.template is None
    assert "base model" in checked.refusal
    assert [finding.code for finding in checked.findings] == ["card_of_base_model"]


def test_reading_a_tokenizer_brings_in_nothing_that_computes_with_weights(tiny_repo):
    spec = parse_spec(tiny_repo.specs()[0])
    snapshot = open_snapshot(spec, cache_dir=tiny_repo.cache_dir, local_files_only=True)
    code = f"""
import pathlib, sys
from loaders.checkpoint.tokenizer import load_tokenizer
load_tokenizer(pathlib.Path({str(snapshot.folder)!r}))
print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
