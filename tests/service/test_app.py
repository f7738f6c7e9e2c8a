"""The composition root: what is refused at once, what "auto" comes to, and a real tiny model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from engine.config import KVDtype
from engine.errors import NotEnoughBlocksError
from loaders.load import GenerationDefaults, LoadedModel, Provenance
from loaders.spec import parse_spec
from service import app
from service.app import (
    identity_of,
    load_served_model,
    resolve_device,
    resolve_engine_config,
    resolve_kv_cache_bytes,
    resolve_loader,
    resolve_num_threads,
    resolve_served_name,
)
from service.errors import SettingsError
from service.settings import Settings
from tests.models import tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from service.served_model import Identity
    from tests.models import TinyRepositories


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_tokenizer) -> LoadedModel:
    return LoadedModel(
        model=tiny_llama(dtype=torch.float32),
        tokenizer=tiny_tokenizer,
        generation=GenerationDefaults(None, None, None, frozenset({1})),
        quantization=None,
        provenance=Provenance(
            repo="owner/name",
            revision="main",
            commit="0123abc",
            folder=tmp_path_factory.mktemp("empty"),
            backend="dense",
            dtype="float32",
            device="cpu",
        ),
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backend": "fast", "variant": "a/b"}, "backend is 'fast'; choose one of auto"),
        ({"dtype": "int4", "variant": "a/b"}, "dtype is 'int4'; choose one of auto, float32"),
        ({"device": "tpu", "variant": "a/b"}, "tpu"),
        ({"device": "cuda:99", "variant": "a/b"}, "cuda:99"),
        ({"variant": "./no-such-folder"}, "no folder"),
        ({"variant": "x/y/z:main"}, "x/y/z"),
        ({"variant": " "}, "empty"),
    ],
)
def test_names_that_cannot_be_right_are_refused_before_loading(settings, told):
    with pytest.raises(SettingsError, match=told):
        resolve_loader(Settings(**settings))


@pytest.mark.parametrize("variant", ["owner/name", "owner/name:branch", "owner/name@0123abc"])
def test_variant_is_served_as_it_was_named(variant):
    assert resolve_served_name(Settings(variant=variant), parse_spec(variant)) == variant
    named = Settings(variant=variant, served_model_name="mine")
    assert resolve_served_name(named, parse_spec(variant)) == "mine"


def test_folder_is_served_without_its_path(tmp_path: Path):
    variant = str(tmp_path)
    assert resolve_served_name(Settings(variant=variant), parse_spec(variant)) == tmp_path.name


def test_threads_are_as_asked_or_the_physical_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(app, "CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    assert resolve_num_threads(Settings(num_threads=3)) == 3
    monkeypatch.setattr(app.psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(app.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert resolve_num_threads(Settings()) == 4
    monkeypatch.setattr(app.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert resolve_num_threads(Settings()) == 3
    for limit, threads in (("max 100000", 3), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(limit)
        assert resolve_num_threads(Settings()) == threads


def test_kv_cache_is_as_asked_or_a_share_of_what_is_free(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(app, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(app, "CPU_KV_BYTES", 300)
    assert resolve_kv_cache_bytes(Settings(kv_cache_size=7), cpu, sequence_bytes=10) == 7
    assert resolve_kv_cache_bytes(Settings(), cpu, sequence_bytes=10) == 300
    assert resolve_kv_cache_bytes(Settings(), cpu, sequence_bytes=400) == 400
    assert resolve_kv_cache_bytes(Settings(), cpu, sequence_bytes=600) == 500
    # Half of the GPU's 2000 bytes are taken by the weights; 90 % may be taken in all.
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2000)
    )
    assert resolve_kv_cache_bytes(Settings(), cuda, sequence_bytes=10) == 800
    assert resolve_kv_cache_bytes(Settings(gpu_memory_utilization=0.4), cuda, 10) == 0


def test_context_is_what_the_model_was_made_for(loaded):
    made_for = loaded.model.config.max_position_embeddings
    config = resolve_engine_config(Settings(), loaded)
    assert config.max_model_len == made_for
    assert config.num_blocks * config.block_size >= made_for
    assert config.max_num_seqs == 32


def test_context_shrinks_to_what_the_kv_cache_holds(loaded):
    roomy = resolve_engine_config(Settings(max_num_seqs=1), loaded)
    block_bytes = app.kv_block_bytes(loaded.model.config, app.BLOCK_SIZE, KVDtype.FLOAT32)
    small = Settings(kv_cache_size=3 * block_bytes)
    config = resolve_engine_config(small, loaded)
    assert config.max_model_len == 2 * app.BLOCK_SIZE < roomy.max_model_len
    with pytest.raises(NotEnoughBlocksError):
        resolve_engine_config(Settings(kv_cache_size=3 * block_bytes, max_model_len=100), loaded)


def test_longer_context_than_the_model_was_made_for_is_refused(loaded):
    made_for = loaded.model.config.max_position_embeddings
    with pytest.raises(SettingsError, match=str(made_for)):
        resolve_engine_config(Settings(max_model_len=made_for + 1), loaded)


def test_a_step_computes_a_token_of_each_sequence_at_least(loaded):
    with pytest.raises(SettingsError, match="at least one token of each sequence"):
        resolve_engine_config(Settings(max_num_batched_tokens=4, max_num_seqs=5), loaded)
    assert resolve_engine_config(Settings(), loaded).max_num_batched_tokens == 512
    assert resolve_engine_config(Settings(max_num_seqs=600), loaded).max_num_batched_tokens == 600


def test_keys_and_values_are_kept_as_asked_and_take_less_memory(loaded):
    size = 40 * app.kv_block_bytes(loaded.model.config, app.BLOCK_SIZE, KVDtype.FLOAT32)
    blocks = {
        dtype: resolve_engine_config(
            Settings(kv_cache_dtype=dtype, kv_cache_size=size), loaded
        ).num_blocks
        for dtype in ("auto", "float16", "fp8")
    }
    assert blocks["auto"] == 39
    assert blocks["float16"] == 79
    assert blocks["fp8"] > 120


def identify(loaded: LoadedModel) -> Identity:
    return identity_of(loaded, None, is_batch_invariant=False)


def test_fingerprint_changes_with_whatever_may_change_an_answer(loaded):
    one = identify(loaded)
    assert one.fingerprint == identify(loaded).fingerprint
    assert one.fingerprint != identity_of(loaded, None, is_batch_invariant=True).fingerprint
    for change in ({"commit": "f00"}, {"backend": "int4pack"}, {"dtype": "bfloat16"}):
        other = replace(loaded, provenance=replace(loaded.provenance, **change))
        assert identify(other).fingerprint != one.fingerprint
    moved = replace(loaded, provenance=replace(loaded.provenance, folder="/elsewhere"))
    assert identify(moved).fingerprint == one.fingerprint


def test_identity_can_be_sent_as_headers(loaded):
    folder = replace(loaded, provenance=replace(loaded.provenance, commit=None, revision=None))
    for value in identify(folder).headers.values():
        assert value
        value.encode("latin-1")


def test_served_model_is_whole(tiny_repo: TinyRepositories):
    variant = tiny_repo.specs()[0]
    settings = Settings(
        variant=variant,
        cache_dir=tiny_repo.cache_dir,
        local_files_only=True,
        device="cpu",
        max_num_seqs=2,
        num_threads=torch.get_num_threads(),
    )
    served = load_served_model(settings, parse_spec(variant))
    try:
        assert served.engine.is_alive
        assert served.name == variant
        assert served.require_chat_template().render([{"role": "user", "content": "hi"}])
        assert served.stop_token_ids == {1, 3}
        assert served.identity.record["commit"] == served.identity.revision
    finally:
        served.close()
    assert not served.engine.is_alive


def test_of_several_gpus_the_one_with_the_most_free_memory_is_used(monkeypatch):
    free = {0: 3, 1: 9, 2: 5}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("service.app.free_bytes", lambda device: free[device.index])
    assert resolve_device("auto") == "cuda:1"
    assert resolve_device("cuda:2") == "cuda:2"


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_with_one_gpu_or_none_there_is_nothing_to_choose(monkeypatch, num_gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    assert resolve_device("auto") == "auto"
