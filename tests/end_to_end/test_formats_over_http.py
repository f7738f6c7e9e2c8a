"""Every format, from its files to an answer over HTTP: one server that serves all of them.

What is right is told by stock Transformers models of independently dequantised weights. Answers are
exactly theirs with the reference; with the fastest kernels another token is forgiven where it all
but ties with the best.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests import models
from tests.dequantize import dequantized_model
from tests.gguf_writer import (
    as_stored,
    cut_file,
    mixed,
    model_metadata,
    model_tensors,
    write_gguf,
    write_set,
)
from tests.greedy import answer_of, may_say
from tests.service.real_server import serving

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

PROMPTS = ("def reverse(text):", "The capital of France is")
NUM_TOKENS = 12
KV_CACHE_BYTES = 2**20  # 256 tokens and more
MAX_MODEL_LEN = 128

Q4_K_M = mixed("Q4_K", "Q6_K", ["attn_v", "ffn_down"])
AUTO_ROUND = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 128,
    "sym": False,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
}


@dataclass(frozen=True)
class Served:
    """A checkpoint and the stock model of its weights."""

    path: Path  # a folder, or a file
    expected: Any


def make_checkpoints(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Served]:
    made = make_folders(folder, tokenizer)
    return {**made, **make_gguf_files(folder, tokenizer)}


def make_folders(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Served]:
    model = models.tiny_llama(hidden_size=256, intermediate_size=512)

    def gptq(name: str, told: dict[str, Any] | None = None, **settings: Any) -> Served:
        path = models.write_gptq_checkpoint(folder / name, model, tokenizer=tokenizer, **settings)
        return Served(path, dequantized_model(path, told))

    def awq(version: models.AwqVersion) -> Served:
        path = models.write_awq_checkpoint(
            folder / version, model, tokenizer=tokenizer, version=version
        )
        return Served(path, dequantized_model(path))

    compressed = models.write_compressed_checkpoint(
        folder / "compressed", model, tokenizer=tokenizer, sym=False, group_size=32
    )
    rope = models.tiny_llama(
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, hidden_size=256
    )
    dense = models.write_plain_checkpoint(folder / "dense", rope, tokenizer=tokenizer)
    old = {"quant_method": "gptq", "checkpoint_format": "gptq", "group_size": 128}
    auto_round = gptq("auto-round", sym=False)
    resolve_auto_round(auto_round.path)
    return {
        "act-order": gptq("act-order", desc_act=True, group_size=32),
        "no-settings": gptq("no-settings", old, settings_in=[]),
        "gemm": awq("gemm"),
        "gemv": awq("gemv"),
        "gemv-fast": awq("gemv_fast"),
        "compressed": Served(compressed, dequantized_model(compressed)),
        "auto-round": auto_round,
        "dense": Served(dense, dequantized_model(dense)),
    }


def resolve_auto_round(folder: Path) -> None:
    """Have a GPTQ checkpoint say that auto-round wrote it."""
    (folder / "quantize_config.json").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": AUTO_ROUND}))


def make_gguf_files(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Served]:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    model = models.tiny_llama(dtype=torch.float32, **shape)
    metadata = model_metadata(model, tokenizer)
    mix, plain = model_tensors(model, Q4_K_M), model_tensors(model, lambda _: "Q8_0")
    first, *_ = write_set(folder / "set", "model", metadata, plain, 3)
    whole = write_gguf(folder / "cut" / "model.gguf", metadata, mix)
    cut, *_ = cut_file(whole, 4001, whole.stat().st_size // 2 + 1)
    mixed_model, plain_model = as_stored(model, Q4_K_M), as_stored(model, lambda _: "Q8_0")
    return {
        "q4-k-m": Served(write_gguf(folder / "mix" / "m.gguf", metadata, mix), mixed_model),
        "q8-0": Served(write_gguf(folder / "plain" / "m.gguf", metadata, plain), plain_model),
        "version-1": Served(
            write_gguf(folder / "old" / "m.gguf", metadata, mix, version=1), mixed_model
        ),
        "cut": Served(cut, mixed_model),
        "set": Served(first, plain_model),
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Served]:
    return make_checkpoints(tmp_path_factory.mktemp("formats"), models.tiny_tokenizer())


def answers_over_http(
    folder: Path, checkpoints: dict[str, Served], **settings: Any
) -> dict[str, dict[str, str]]:
    """Serve all checkpoints at once; return each one's answers by prompt."""
    first, *others = checkpoints
    also = [f"{name}={checkpoints[name].path}" for name in others]
    own = {
        "kv_cache_size": KV_CACHE_BYTES,
        "max_model_len": MAX_MODEL_LEN,
        "cache_dir": str(folder / "cache"),
        "served_model_name": first,
    }
    with serving(folder, str(checkpoints[first].path), *also, **own, **settings) as server:
        assert all(told["self_test"]["passed"] for told in server.health()), server.log()
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda name: ask(server, name), checkpoints)
            return dict(zip(checkpoints, answers, strict=True))


def ask(server: RealServer, name: str) -> dict[str, str]:
    assert server.model(name)["degraded"] is None
    return {prompt: server.complete(name, prompt, NUM_TOKENS) for prompt in PROMPTS}


def test_every_format_answers_over_http_as_its_dequantised_weights(tmp_path, checkpoints):
    tokenizer = models.tiny_tokenizer()
    expected = {
        name: {
            prompt: answer_of(served.expected, tokenizer, prompt, NUM_TOKENS) for prompt in PROMPTS
        }
        for name, served in checkpoints.items()
    }
    assert answers_over_http(tmp_path, checkpoints, backend="reference") == expected


@pytest.mark.smoke
def test_and_so_it_does_with_the_fastest_kernels_in_threads_of_the_server(tmp_path, checkpoints):
    tokenizer = models.tiny_tokenizer()
    found = answers_over_http(tmp_path, checkpoints, in_process=True)
    wrong = [
        name
        for name, answers in found.items()
        for prompt, text in answers.items()
        if not may_say(checkpoints[name].expected, tokenizer, prompt, text, NUM_TOKENS)
    ]
    assert wrong == []
