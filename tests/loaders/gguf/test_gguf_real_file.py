"""The real file that needs no hub: SmolLM2-135M-Instruct, Q4_1, out of the demo's wheel."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from loaders.demo.source import read_source
from loaders.demo.wheel import find_gguf
from loaders.load import load
from tests.end_to_end.test_serve_command import connect, serving

pytestmark = pytest.mark.slow

PROMPT = "Count from 1 to 5."
TEXTS = (PROMPT, "def f(x):\n\treturn 12345  # é 日本 🎉", "<|im_start|>user\nhi<|im_end|>\n")
FILE_BYTES = 98_362_432  # of which 30 MB are the embedding, 8 bits a value


@pytest.fixture(scope="module")
def source():
    return read_source()


@pytest.fixture(scope="module")
def stock(source):
    """Stock Transformers with the weights that the gguf package reads."""
    model = LlamaForCausalLM(source.config)
    model.load_state_dict(dict(source.weights), strict=False)  # the head is tied
    model.tie_weights()
    return model.eval()


def greedy(model, ids, count=8):
    with torch.inference_mode():
        return model.generate(ids, max_new_tokens=count, do_sample=False)[0].tolist()


def test_it_answers_as_stock_transformers_does_with_its_weights(source, stock, tmp_path):
    loaded = load(str(find_gguf()), device="cpu", backend="reference", cache_dir=tmp_path)
    for text in TEXTS:
        assert loaded.tokenizer(text)["input_ids"] == source.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.chat_template == source.tokenizer.chat_template
    messages = [{"role": "user", "content": PROMPT}]
    rendered = source.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = torch.tensor([rendered["input_ids"]])
    assert greedy(loaded.model, ids) == greedy(stock, ids)
    with torch.inference_mode():
        expected = stock(ids).logits
        # The embedding is rounded to half precision; measured 2026-11: 0.0007.
        error = (loaded.model(ids).logits - expected).abs().max() / expected.std()
    assert float(error) < 0.002


def test_it_takes_not_much_more_memory_than_the_file_has_bytes(tmp_path):
    """Measured in a process of its own, above what importing and a tokenizer take."""
    program = (
        "import json, pathlib, sys, psutil\n"
        "from loaders.load import load\n"
        "rss = lambda: psutil.Process().memory_info().rss\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: int(status().split('VmHWM:')[1].split()[0]) * 1024\n"
        "load(sys.argv[1], device='cpu', cache_dir=pathlib.Path(sys.argv[2]))\n"
        "before = rss()\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "loaded = load(sys.argv[1], device='cpu', cache_dir=pathlib.Path(sys.argv[2]))\n"
        "print(json.dumps([rss() - before, peak() - before]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(find_gguf()), str(tmp_path)],
        capture_output=True,
        check=True,
        text=True,
    )
    kept, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"kept {kept / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert kept < 1.5 * FILE_BYTES
    assert peak < 2.3 * FILE_BYTES


def test_it_is_served_by_its_path(source, tmp_path):
    settings = {"cache_dir": str(tmp_path / "cache"), "num_threads": 1, "max_num_seqs": 2}
    with serving(tmp_path, str(find_gguf()), **settings) as (url, _), connect(url) as client:
        (model,) = client.models.list()
        assert model.id == "SmolLM2-135M-Instruct.Q4_1"
        answer = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": "Count from 1 to 5."}],
            temperature=0,
            max_tokens=8,
        )
        assert answer.choices[0].message.content == "1. 1\n2. "  # no near ties, by stock
        provenance = client.models.retrieve(model.id).provenance
        assert provenance["kernel"] == "int4pack+int4planes"
        assert provenance["quantization"] == "gguf Q4_1"
