"""What a served variant has, or why it has not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loaders.checkpoint.tokenizer import load_tokenizer
from service.text.errors import ChatNotSupportedError, InfillingNotSupportedError
from service.text.infilling.families import STARCODER
from service.text.infilling.infilling import Infilling
from tests.sentencepiece_models import train_sentencepiece
from tests.service.fakes import ByteTokenizer, FakeEngine, served_model


@pytest.fixture
def model():
    return served_model(FakeEngine(lambda prompt, params: []), ByteTokenizer())


def test_what_it_can_is_given(model, tmp_path):
    pieces = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(control_symbols=pieces))
    infilling = Infilling(load_tokenizer(tmp_path, is_tried=True), STARCODER)
    assert replace(model, infilling=infilling).require_infilling() is infilling
    assert model.require_chat_template() is model.chat_template


def test_what_it_cannot_is_refused_in_the_words_found_at_load(model):
    refused = replace(model, chat_template=None, chat_refusal="no", infilling_refusal="no gap")
    with pytest.raises(InfillingNotSupportedError, match="no gap"):
        refused.require_infilling()
    with pytest.raises(ChatNotSupportedError, match="no"):
        refused.require_chat_template()
