"""The largest settings, and the most tensors, that are read are answered in time and memory."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

pytestmark = pytest.mark.slow

SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1,
    "head_dim": 32,
}  # fmt: skip
LIMIT_S, LIMIT_BYTES = 20, 2_000_000_000
LOAD_EACH = """
import json, resource, sys, time
from pathlib import Path
import loaders.model.build, transformers.models.llama.modeling_llama
from loaders.errors import LoadError
from loaders.load import load
for name, changes in json.loads(Path(sys.argv[2]).read_text()):
    path = Path(sys.argv[1], name)
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    assert path.stat().st_size < 4_000_000
    began, answer = time.process_time(), "loaded"
    try:
        load(sys.argv[1], device="cpu")
    except LoadError as error:
        answer = str(error)
    path.write_text(before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([name, time.process_time() - began, peak, answer[:200]]))
"""


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    return write_gptq_checkpoint(
        folder, tiny_llama(**SMALL), group_size=32, tokenizer=tiny_tokenizer()
    )


def load_each(folder, changes):
    """Load once for each change of a settings file; return seconds, peak and answer of each."""
    listing = folder.parent / "changes.json"
    listing.write_text(json.dumps(changes))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_EACH, str(folder), str(listing)],
        check=True,
        capture_output=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30)),
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"[")]
    assert len(answers) == len(changes)
    for name, took_s, peak, answer in answers:
        assert took_s < LIMIT_S, (name, answer)
        assert peak < LIMIT_BYTES, (name, answer)
    return [answer for *_, answer in answers]


def test_settings_of_four_megabytes_are_answered(checkpoint):
    many_keys = {f"key{i}": i % 9 for i in range(250_000)}
    many_ids = list(range(450_000))
    added = {
        str(600 + i): {"content": f"<{i}>", "special": True, "normalized": False}
        for i in range(30_000)
    }
    answers = load_each(
        checkpoint,
        [
            ("config.json", many_keys),
            ("config.json", {"eos_token_id": many_ids}),
            ("config.json", {"nested": [{"auto_map": 1}] * 150_000}),
            ("generation_config.json", {"eos_token_id": many_ids}),
            ("quantize_config.json", {"modules_in_block_to_quantize": [["mlp"] * 400_000]}),
            ("tokenizer_config.json", {"added_tokens_decoder": added}),
        ],
    )
    assert all(answers)


def test_a_hundred_thousand_tensors_are_answered(checkpoint):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    more = range(100_000 - len(tensors))
    extra = {f"model.layers.{i % 9 + 2}.x{i}": torch.zeros(1) for i in more}
    save_file({**tensors, **extra}, path, metadata={"format": "pt"})
    (answer,) = load_each(checkpoint, [("config.json", {})])
    assert answer
