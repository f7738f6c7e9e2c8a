"""Where a variant's template comes from: the operator, the tokenizer, the family; in this order."""

from __future__ import annotations

import os

import pytest
from transformers import PreTrainedTokenizerFast

from service.text.errors import ChatNotSupportedError, TemplateSettingError
from service.text.facts import VariantFacts
from service.text.families import FAMILIES, LLAMA_2
from service.text.template_choice import (
    MAX_FILE_BYTES,
    TemplateOrigin,
    check_setting,
    choose_template,
)

NAMED = {"default": "the default", "tool_use": "with tools", "rag": "with documents"}


def choose(tokenizer, template, asked=None, repo="TheBloke/CodeLlama-7B-Instruct-GPTQ"):
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, chat_template=template
    )
    pieces = frozenset(own.added_tokens_encoder)
    return choose_template(own, VariantFacts(repo=repo, model_type="llama", pieces=pieces), asked)


@pytest.mark.parametrize(
    ("template", "source", "origin"),
    [
        ("own", "own", TemplateOrigin.TOKENIZER),
        (NAMED, "the default", TemplateOrigin.TOKENIZER),
        (None, LLAMA_2.template, TemplateOrigin.FAMILY),
        ("", LLAMA_2.template, TemplateOrigin.FAMILY),
        ({"tool_use": "with tools"}, LLAMA_2.template, TemplateOrigin.FAMILY),
        ({"default": 5, "rag": {"a": "b"}}, LLAMA_2.template, TemplateOrigin.FAMILY),
        (5, LLAMA_2.template, TemplateOrigin.FAMILY),
    ],
)
def test_the_tokenizers_default_goes_before_the_familys(small, template, source, origin):
    chosen = choose(small, template)
    assert (chosen.source, chosen.origin) == (source, origin)
    assert not chosen.is_operators_choice


@pytest.mark.parametrize("asked", ["default", "tool_use", "rag"])
def test_an_operator_may_choose_another_of_the_tokenizers(small, asked):
    chosen = choose(small, NAMED, asked)
    assert (chosen.source, chosen.origin) == (NAMED[asked], TemplateOrigin.TOKENIZER)
    assert chosen.is_operators_choice
    assert (asked in chosen.name) == (asked != "default")


@pytest.mark.parametrize("asked", ["llama-2", "chatml", "mistral", "deepseek-coder", "alpaca"])
def test_an_operator_may_choose_a_family(small, asked):
    chosen = choose(small, "own", asked, repo="a/base-model")
    assert (chosen.source, chosen.origin) == (FAMILIES[asked].template, TemplateOrigin.FAMILY)


def test_an_operators_file_is_read(small, tmp_path, monkeypatch):
    file = tmp_path / "mine.jinja"
    file.write_text("ü{{ messages }}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for asked in (str(file), "mine.jinja", "./mine.jinja", "~/mine.jinja"):
        check_setting(asked)
        chosen = choose(small, "own", asked)
        assert (chosen.source, chosen.origin) == ("ü{{ messages }}", TemplateOrigin.FILE)
        assert chosen.name == "mine.jinja"  # the path is nobody's business


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (NAMED, "tokenizer has default, rag, tool_use, and the families' are llama-2, codellama-"),
        (None, "tokenizer has none of its own, and the families' are"),
    ],
)
def test_a_name_that_is_none_is_answered_with_all_there_are(small, template, told):
    with pytest.raises(TemplateSettingError, match="chat_template is 'other', but") as error:
        choose(small, template, "other")
    assert told in str(error.value)
    assert all(name in str(error.value) for name in FAMILIES)
    assert ".jinja" in str(error.value)


def test_a_family_whose_pieces_the_tokenizer_lacks_is_refused(small):
    with pytest.raises(TemplateSettingError, match="tokenizer lacks <step>"):
        choose(small, "own", "codellama-70b")


def test_templates_by_name_are_listed_where_none_of_them_counts(small):
    with pytest.raises(ChatNotSupportedError, match=r"setting chat_template: tool_use\."):
        choose(small, {"tool_use": "with tools"}, repo="unknown/model")


def make_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "No such file"),
        (make_folder, "is a folder"),
        (os.mkfifo, "named pipe"),
        (lambda path: path.write_bytes(b"\xff\xfe"), r"no text in UTF-8 \(byte 0\)"),
        (lambda path: path.write_bytes(b" " * (MAX_FILE_BYTES + 1)), "larger than"),
        (lambda path: path.write_bytes(b" \n"), "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_before_anything_is_loaded(tmp_path, make, told):
    file = tmp_path / "mine.jinja"
    make(file)
    with pytest.raises(TemplateSettingError, match=told) as error:
        check_setting(str(file))
    assert str(file.name) in str(error.value)


def test_of_names_nothing_is_known_before(small):
    check_setting("tool_use")
