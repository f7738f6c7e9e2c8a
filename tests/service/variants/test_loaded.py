"""An engine that is ready, joined with the variant's text."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from loaders.checkpoint.generation_defaults import GenerationDefaults
from loaders.demo.repository import find_snapshot
from service.settings import Settings
from service.text.errors import InfillSettingError, TemplateSettingError
from service.variants.fallback import FallbackPolicy
from service.variants.loaded import LoadedVariant
from service.worker_protocol.model_description import ModelDescription

DESCRIPTION = ModelDescription(
    repo="owner/name",
    revision="main",
    commit="0123abc",
    folder="",
    quantization="none",
    backend="reference",
    dtype="float32",
    device="cpu",
    is_batch_invariant=False,
    model_type="llama",
    vocab_size=512,
    num_hidden_layers=2,
    defaults=GenerationDefaults(None, None, None, frozenset({1})),
)


@pytest.fixture
def serve(tiny_repo):
    """Serve the tiny model's text with the template that its settings name."""
    folder = find_snapshot(tiny_repo.cache_dir, tiny_repo.gptq_repo, "main")
    description = msgspec.structs.replace(DESCRIPTION, folder=str(folder)).encode()

    async def ready() -> SimpleNamespace:
        return SimpleNamespace(model_description=description)

    async def load(chat_template: str | None, infill_order: str | None):
        handle = SimpleNamespace(client=SimpleNamespace(ready=ready))
        policy = FallbackPolicy(Settings(variant="owner/name").variants()[0])
        variant = LoadedVariant(
            *("x", "owner/name", policy, None),
            chat_template=chat_template,
            infill_order=infill_order,
        )
        try:
            served = await variant.wait_ready(handle)
            again = await variant.wait_ready(handle)
            assert served.chat_template is again.chat_template
            return served
        finally:
            await variant.close()

    return lambda chat_template, infill_order=None: asyncio.run(load(chat_template, infill_order))


def test_the_template_that_the_settings_name_is_served_with_its_end_and_its_doubts(serve):
    own, named = serve(None), serve("llama-2")
    assert own.chat_template.name == "the tokenizer's own"
    assert [finding.code for finding in own.template_findings] == ["missing_bos"]
    assert named.chat_template.name == "Llama 2"
    assert named.template_findings == ()
    assert (own.stop_token_ids, named.stop_token_ids) == ({1, 3}, {1})


def test_a_template_that_is_not_there_fails_the_variant(serve):
    with pytest.raises(TemplateSettingError, match="chat_template is 'other'"):
        serve("other")


def test_an_order_that_the_variant_has_not_fails_it(serve):
    with pytest.raises(InfillSettingError, match="infill_order is 'spm'"):
        serve(None, "spm")
