"""What settings and headers alone give reason to doubt, before a weight is read."""

import json

import pytest

from loaders.model.opened import open_checkpoint
from tests.models import tiny_llama, write_plain_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = tiny_llama(hidden_size=64, intermediate_size=64, num_attention_heads=4)
    return write_plain_checkpoint(tmp_path_factory.mktemp("plain"), model)


def doubts(folder, **changes):
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        return [suspicion.check for suspicion in open_checkpoint(folder, None, None).suspicions]
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    "architectures",
    [
        ["LlamaForCausalLM"],
        ["LLaMAForCausalLM"],  # as the first conversions called it
        ["Somebody'sModel"],
        [{"no": "name"}],
        [],
        None,
        "LlamaForCausalLM",
    ],
)
def test_names_that_do_not_say_another_model_are_not_suspect(plain, architectures):
    assert doubts(plain, architectures=architectures) == []


@pytest.mark.parametrize("model_type", ["gemma", "mistral", "qwen2"])
def test_a_model_type_that_is_not_the_classs_is_suspect(plain, model_type):
    assert doubts(plain, model_type=model_type) == ["other_class"]
