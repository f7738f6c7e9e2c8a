"""Models are held against the tensors while they take no memory."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from loaders.checkpoint.config import make_model_config
from loaders.checkpoint.files import TensorInfo
from loaders.errors import TensorError
from loaders.load import load
from loaders.model.skeleton import check_unpacked
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint, write_plain_checkpoint

TENSORS = {"transformer.wte.weight": TensorInfo("wte", "F16", (8, 4), Path("model.safetensors"))}
WRITERS = {"plain": write_plain_checkpoint, "gptq": write_gptq_checkpoint}


@pytest.fixture(params=WRITERS)
def checkpoint(request, tmp_path):
    return WRITERS[request.param](tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 513}, r"\[512, 512\], expected \[513, 512\]"),
        ({"vocab_size": 511}, r"\[512, 512\], expected \[511, 512\]"),
        ({"intermediate_size": 1400}, r"expected .*1400|1400 outputs"),
        ({"head_dim": 1 << 13}, r"expected"),
        ({"num_key_value_heads": 8}, r"k_proj"),
    ],
)
def test_shapes_that_differ_are_told_with_both(checkpoint, changes, message):
    edit(checkpoint, **changes)
    with pytest.raises(TensorError, match=message):
        load(str(checkpoint), device="cpu")


def check(config, tensors=TENSORS):
    made = make_model_config(config)
    check_unpacked(MODEL_FOR_CAUSAL_LM_MAPPING[type(made)], made, tensors, is_stock=False)


def test_weights_that_the_checkpoint_lacks_are_not_made_room_for():
    """A layer of 5e10 weights, under a name that no tensor has."""
    wide = {"hidden_size": 1 << 17, "intermediate_size": 1 << 17, "num_hidden_layers": 1}
    with pytest.raises(
        TensorError, match=r"weights that the checkpoint lacks .*query_key_value.*51539607552"
    ):
        check({"model_type": "gpt_neox", "num_attention_heads": 8, "vocab_size": 8, **wide})


def test_tables_that_a_model_would_make_by_itself_have_an_end():
    """GPT-Neo keeps a mask of all positions by all positions."""
    config = {
        "model_type": "gpt_neo", "hidden_size": 4, "num_heads": 1, "num_layers": 1,
        "attention_types": [[["global"], 1]], "vocab_size": 8,
    }  # fmt: skip
    check({**config, "max_position_embeddings": 1 << 10})
    with pytest.raises(TensorError, match=r"tables of \d+ bytes"):
        check({**config, "max_position_embeddings": 1 << 17})


ABSURD = [
    {"vocab_size": 1 << 24},
    {"num_hidden_layers": 4096},
    {"num_labels": 10**9},
    {"intermediate_size": 1 << 22},
    {"hidden_size": 1 << 20},
    {"num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14},
    {"pad_token_id": 10**9, "vocab_size": 1 << 24},
]
LOAD_EACH = """
import json, resource, sys, time
from pathlib import Path
import loaders.model.build, transformers.models.llama.modeling_llama
from loaders.errors import LoadError
from loaders.load import load
config = json.loads(Path(sys.argv[1], "config.json").read_text())
for changes in json.loads(sys.argv[2]):
    Path(sys.argv[1], "config.json").write_text(json.dumps({**config, **changes}))
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load(sys.argv[1], device="cpu")
    except LoadError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        print(json.dumps([str(error), time.process_time() - began, grown]))
"""


def test_absurd_counts_are_refused_within_a_second_and_without_memory(tmp_path):
    folder = write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    done = subprocess.run(
        [sys.executable, "-c", LOAD_EACH, str(folder), json.dumps(ABSURD)],
        check=True,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30)),
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"[")]
    assert len(answers) == len(ABSURD)
    for changes, (message, took_s, grown_kb) in zip(ABSURD, answers, strict=True):
        assert any(str(value) in message for value in changes.values()), message
        assert took_s < 1
        assert grown_kb < 100_000
