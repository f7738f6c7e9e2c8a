"""Samples of packed layers: outputs from all over the width, whatever the format."""

from __future__ import annotations

import pytest
import torch

from loaders.load import load
from loaders.model.opened import open_checkpoint
from loaders.model.plausibility import sampling
from loaders.model.plausibility.sampling import choose_outputs, open_tensors, sample_layers
from tests.dequantize import dequantized_state
from tests.models import (
    tiny_llama,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

FORMATS = {
    "gptq": (write_gptq_checkpoint, {"group_size": 32, "desc_act": True}),
    "gptq in 3 bits": (write_gptq_checkpoint, {"bits": 3, "sym": False}),
    "gptq v2, one group": (
        write_gptq_checkpoint,
        {"checkpoint_format": "gptq_v2", "sym": False, "group_size": -1},
    ),
    "awq": (write_awq_checkpoint, {}),
    "awq gemv": (write_awq_checkpoint, {"version": "gemv"}),
    "awq gemv_fast": (write_awq_checkpoint, {"version": "gemv_fast"}),
    "compressed": (write_compressed_checkpoint, {"sym": False, "actorder": "group"}),
}


def samples_of(folder):
    opened = open_checkpoint(folder, None, None)
    model = load(str(folder), device="cpu", backend="reference").model
    with open_tensors(opened.tensors) as read:
        return sample_layers(opened, model, read)


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_holds_the_chosen_outputs_of_every_packed_layer(name, tmp_path, tiny_tokenizer):
    write, options = FORMATS[name]
    model = tiny_llama(num_hidden_layers=1)
    write(tmp_path, model, tokenizer=tiny_tokenizer, **options)
    samples = samples_of(tmp_path)
    assert len(samples) == 7
    state = dequantized_state(tmp_path)
    for sample in samples:
        weight = (sample.codes - sample.zeros[sample.groups]) * sample.scales[sample.groups]
        whole = torch.from_numpy(state[f"{sample.name}.weight"])
        runs = choose_outputs(sample.format.bits, len(whole))
        expected = torch.cat([whole[run.start : run.stop] for run in runs])
        torch.testing.assert_close(weight.t(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("out_features", [8, 32, 96, 576, 1536, 4096])
def test_the_chosen_outputs_are_whole_words_from_the_first_to_the_last(bits, out_features):
    runs = choose_outputs(bits, out_features)
    assert runs[0].start == 0
    assert runs[-1].stop == out_features
    chosen = [output for run in runs for output in run]
    assert len(set(chosen)) == len(chosen) == min(len(chosen), out_features)
    if out_features > 64:
        assert len(runs) > 1
        assert len(chosen) <= 64
        assert all(run.start * bits % 32 == len(run) * bits % 32 == 0 for run in runs)


def test_of_many_layers_some_are_sampled_from_the_first_to_the_last(
    tmp_path, tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr(sampling, "MAX_LAYERS", 4)
    write_gptq_checkpoint(tmp_path, tiny_llama(num_hidden_layers=2), tokenizer=tiny_tokenizer)
    blocks = [sample.name.split(".")[2] for sample in samples_of(tmp_path)]
    assert blocks == ["0", "0", "1", "1"]


def test_a_plain_checkpoint_has_no_samples(tmp_path, tiny_tokenizer):
    write_plain_checkpoint(tmp_path, tiny_llama(num_hidden_layers=1), tokenizer=tiny_tokenizer)
    assert samples_of(tmp_path) == []
