"""What an engine's process really takes on CPU, beside what the plan predicts.

Measured is the resident memory of the process (RSS, what `top` shows an operator) once the engine
has read a prompt longer than one chunk; predicted is the breakdown's total. The growth beyond the
interpreter with its libraries must agree as well, or a wrong constant could hide in a right sum.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loaders.checkpoint.config import read_config
from loaders.checkpoint.files import read_checkpoint
from loaders.memory.device import Demand, predicted_memory
from loaders.quantization.settings import read_quantization
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

MEASURE = """
import json, sys
# As with PyTorch's CPU build, which a plan's figure is of. Where Triton is installed, as these
# tests need it, PyTorch takes it along: 80 MB more.
sys.modules["triton"] = None
import psutil
from engine.core import Engine
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from service.worker import build, sizing
from service.worker_protocol.load_attempt import LoadRequest
from service.settings import WorkerSettings
import transformers.models.llama.modeling_llama

def ignore_progress(*_, **__):
    pass

def resident():
    return psutil.Process().memory_info().rss

before = resident()
settings = WorkerSettings(
    variant=sys.argv[1], cache_dir=sys.argv[2], local_files_only=True, device="cpu",
    kv_cache_size=int(sys.argv[3]), max_num_seqs=4, num_threads=1, log_level="error",
)
asked = build.prepare(settings, LoadRequest())
loaded = build.load_variant(asked, settings, LoadRequest(), ignore_progress)
config = sizing.resolve_engine_config(settings, loaded)
engine = Engine(loaded.model, config)
build.self_test(engine)
prompt = tuple(i % 30000 for i in range(config.max_model_len - 8))
engine.add(SequenceRequest(
    sequence_id=1, prompt_token_ids=prompt, params=SamplingParams(max_tokens=4, temperature=0.0)
))
while engine.has_work:
    engine.step()
print(json.dumps({
    "before": before, "after": resident(), "context": config.max_model_len,
    "kv": (config.num_blocks + 1) * 16 * 46080, "backend": loaded.provenance.backend,
}))
"""
# The demo's default branch and its 4-bit one.
MEASURED = ("gptq-8bit--1g-actorder_True", "main")
KV_BYTES = 64 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted as Linux does")
@pytest.mark.parametrize("revision", MEASURED)
def test_the_prediction_for_the_demo_is_within_a_tenth(demo, revision):
    spec = f"{demo.gptq_repo}:{revision}"
    arguments = [sys.executable, "-c", MEASURE, spec, str(demo.cache_dir), str(KV_BYTES)]
    answer = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])

    folder = open_snapshot(parse_spec(spec), cache_dir=demo.cache_dir, local_files_only=True).folder
    checkpoint, config = read_checkpoint(folder), read_config(folder)
    predicted = predicted_memory(
        checkpoint.tensors,
        config,
        read_quantization(checkpoint, config),
        "cpu",
        demand=Demand(found["context"]),
        kv_cache=found["kv"],
    )
    assert predicted.total == pytest.approx(found["after"], rel=0.10)
    growth = found["after"] - found["before"]
    assert predicted.total - found["before"] == pytest.approx(growth, rel=0.15)
