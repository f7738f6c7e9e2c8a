"""The text side of a variant: where its answers come from, and what its small files give."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from loaders.checkpoint.generation_defaults import GenerationDefaults
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from service.variants.text import identity_of, read_model_text
from service.worker_protocol.model_description import ModelDescription

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
    finally:
        text.close()


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
