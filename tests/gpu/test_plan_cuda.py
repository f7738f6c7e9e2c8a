"""Predicted memory against what the driver counts, for two quantised shapes and a dense one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from engine.core import Engine
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from loaders.checkpoint.config import read_config
from loaders.checkpoint.files import read_checkpoint
from loaders.memory.device import Demand, predicted_memory
from loaders.quantization.settings import read_quantization
from service.settings import WorkerSettings
from service.worker import build as worker
from service.worker import sizing
from service.worker_protocol.load_attempt import LoadRequest
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint, write_plain_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.alone,  # the driver counts what every process takes
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Not measured on a device yet: the allocator keeps what it has freed, cuBLAS takes a workspace.
TOLERANCE = 0.15
CONTEXT = 4096
KV_BYTES = 512 * 2**20
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
}


def _gptq(folder: Path, *, bits: int, group_size: int) -> Path:
    return write_gptq_checkpoint(
        folder,
        tiny_llama(**SIZES),
        bits=bits,
        group_size=group_size,
        desc_act=True,
        tokenizer=tiny_tokenizer(),
    )


# Small groups have the most scales beside their codes.
_small_groups = partial(_gptq, bits=8, group_size=16)
_wide_groups = partial(_gptq, bits=4, group_size=128)


def ignore_progress(
    phase: str, percent: float | None = None, *, load_attempt: object = None
) -> None:
    pass


def _dense(folder: Path) -> Path:
    return write_plain_checkpoint(folder, tiny_llama(**SIZES), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    "write", [_wide_groups, _small_groups, _dense], ids=["wide groups", "small groups", "dense"]
)
def test_the_prediction_is_near_what_the_driver_counts(write, tmp_path):
    folder = write(tmp_path / "model")
    settings = WorkerSettings(
        variant=str(folder), device="cuda:0", kv_cache_size=KV_BYTES, max_num_seqs=1
    )
    torch.zeros(1, device="cuda")  # makes the context, which is not compared
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()

    asked = worker.prepare(settings, LoadRequest())
    loaded = worker.load_variant(asked, settings, LoadRequest(), ignore_progress)
    config = sizing.resolve_engine_config(settings, loaded)
    engine = Engine(loaded.model, config)
    prompt = tuple(5 + i % 500 for i in range(config.max_model_len - 8))
    params = SamplingParams(max_tokens=4, temperature=0.0)
    engine.add(SequenceRequest(sequence_id=1, prompt_token_ids=prompt, params=params))
    while engine.has_work:
        engine.step()
    after, _ = torch.cuda.mem_get_info()

    checkpoint, raw_config = read_checkpoint(folder), read_config(folder)
    predicted = predicted_memory(
        checkpoint.tensors,
        raw_config,
        read_quantization(checkpoint, raw_config),
        "cuda",
        demand=Demand(config.max_model_len),
    )
    assert predicted.total - predicted.context == pytest.approx(before - after, rel=TOLERANCE)
