"""The layers' self-test that goes on after loading: what passes, what is found, what cannot be."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from loaders.demo.branches import BRANCHES
from loaders.errors import CheckpointError
from loaders.load import load
from loaders.model.opened import open_checkpoint
from loaders.model.packed_linear import packed_layers
from loaders.model.self_test import read_part
from loaders.model.self_test.reference_weights import StoredLayer, StoredWeights
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.load import LoadedModel
    from loaders.model.self_test.read_part import LayerPart, Multiply
    from loaders.reports.self_test import Check


def loaded_from(folder: Path, **options: Any) -> LoadedModel:
    return load(str(folder), device="cpu", self_test=True, **options)


def check(
    loaded: LoadedModel, part: LayerPart, multiply: Multiply, *, with_many_rows: bool
) -> Check:
    return loaded.live_layers.read(part, with_many_rows=with_many_rows).compare(multiply)


def check_all(loaded: LoadedModel, *, with_many_rows: bool = True) -> dict[str, list[Check]]:
    """Check every part of every layer, as the model's own modules multiply."""
    layers = packed_layers(loaded.model)
    return {
        name: [
            check(loaded, part, layer, with_many_rows=with_many_rows)
            for part in loaded.live_layers.parts(name)
        ]
        for name, layer in layers.items()
    }


def assert_right(loaded: LoadedModel, num_layers: int) -> None:
    for with_many_rows in (True, False):
        checks = check_all(loaded, with_many_rows=with_many_rows)
        assert len(checks) == num_layers
        for name, of_layer in checks.items():
            assert of_layer, name
            assert all(check.passed and check.worst < 0.6 for check in of_layer), name


LAYERS = 14  # of two blocks


@pytest.mark.parametrize(
    "layout",
    [
        {"bits": 4, "group_size": 32, "desc_act": True, "siblings_share_order": False},
        {"bits": 8, "group_size": 64, "sym": False, "desc_act": True},
        {"bits": 3, "group_size": -1},
    ],
    ids=str,
)
def test_every_layer_of_a_right_model_passes(tmp_path, layout):
    write_gptq_checkpoint(tmp_path, tiny_qwen2(), tokenizer=tiny_tokenizer(), **layout)
    loaded = loaded_from(tmp_path)
    assert_right(loaded, len(packed_layers(loaded.model)))


@pytest.mark.parametrize("backend", ["reference", "fp16pack"])
def test_every_kernel_passes(tmp_path, backend):
    write_awq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path, backend=backend)
    assert_right(loaded, len(packed_layers(loaded.model)))


@pytest.mark.parametrize("is_tied", [True, False])
def test_plain_halves_and_heads_are_checked_piece_by_piece(tmp_path, monkeypatch, is_tied):
    monkeypatch.setattr(read_part, "MAX_PART_WEIGHTS", 2**15)
    model = tiny_llama(tie_word_embeddings=is_tied)
    write_plain_checkpoint(tmp_path, model, tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    assert_right(loaded, LAYERS + 1)
    head = loaded.model.lm_head
    parts = loaded.live_layers.parts("lm_head")
    assert len(parts) > 2
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert (parts[0].start, parts[-1].stop) == (0, head.out_features)

    def wrong(x: torch.Tensor) -> torch.Tensor:
        product = head(x)
        product[:, parts[1].start] *= 1.5
        return product

    found = [check(loaded, part, wrong, with_many_rows=True).passed for part in parts]
    assert found == [True, False, *[True] * (len(parts) - 2)]


@pytest.mark.parametrize(
    "write",
    [
        partial(write_gptq_checkpoint, bits=4, group_size=32, desc_act=True),
        partial(write_gptq_checkpoint, bits=3, group_size=32, sym=False),
        partial(write_gptq_checkpoint, bits=8, group_size=-1, checkpoint_format="gptq_v2"),
        write_awq_checkpoint,
        partial(write_compressed_checkpoint, group_size=32),
        partial(write_compressed_checkpoint, group_size=32, sym=False, bits=8),
        partial(write_compressed_checkpoint, group_size=32, actorder="group"),
        partial(write_compressed_checkpoint, group_size=None),
    ],
    ids=[
        "gptq-order",
        "gptq-3bit",
        "gptq_v2",
        "gemm",
        "compressed",
        "compressed-zeros",
        "compressed-order",
        "compressed-one-scale",
    ],
)
def test_packed_layers_of_every_format_are_cut_into_parts_of_whole_words(
    tmp_path, monkeypatch, write
):
    monkeypatch.setattr(read_part, "MAX_PART_WEIGHTS", 1)
    write(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    weights = StoredWeights(open_checkpoint(tmp_path, None, None), loaded.model)
    name = "model.layers.1.mlp.up_proj"
    whole, parts = weights(name), loaded.live_layers.parts(name)
    assert [len(whole[part.start : part.stop]) for part in parts[:-1]] == [32] * (len(parts) - 1)
    assert len(parts) > 1
    for part in parts:
        read = weights.find_part(name, part.start, part.stop)
        assert torch.equal(read.dequantize(), whole[part.start : part.stop])
    assert_right(loaded, len(packed_layers(loaded.model)))


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
def test_layers_whose_groups_are_counted_by_all_outputs_stay_whole(tmp_path, monkeypatch, version):
    monkeypatch.setattr(read_part, "MAX_PART_WEIGHTS", 1)
    write_awq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer(), version=version)
    loaded = loaded_from(tmp_path)
    assert len(loaded.live_layers.parts("model.layers.1.mlp.up_proj")) == 1
    assert_right(loaded, len(packed_layers(loaded.model)))


def test_what_was_read_is_no_view_of_a_mapped_file_not_even_in_float32():
    mapped = torch.ones(2, 3)
    assert StoredLayer(mapped).dequantize().data_ptr() != mapped.data_ptr()


def test_what_was_read_is_compared_without_the_files(tmp_path):
    folder = tmp_path / "model"
    write_gptq_checkpoint(folder, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(folder)
    name = "model.layers.0.mlp.up_proj"
    (part,) = loaded.live_layers.parts(name)
    read = loaded.live_layers.read(part, with_many_rows=True)
    shutil.rmtree(folder)
    assert read.compare(packed_layers(loaded.model)[name]).passed


def test_one_groups_scales_changed_in_memory_are_found_in_that_layer_alone(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    damaged = "model.layers.1.mlp.up_proj"
    layer = packed_layers(loaded.model)[damaged]
    layer.kernel._scales_and_minima[1, 5] *= 2
    for with_many_rows in (True, False):
        checks = check_all(loaded, with_many_rows=with_many_rows)
        failed = [check for of_layer in checks.values() for check in of_layer if not check.passed]
        assert [check.name for check in failed] == [damaged]
        assert failed[0].backend == "int4pack"
        assert "output 5 is off by" in failed[0].detail or "all outputs" in failed[0].detail


def test_products_that_are_no_numbers_are_found(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    (part,) = loaded.live_layers.parts("model.layers.0.mlp.up_proj")
    size = loaded.model.model.layers[0].mlp.up_proj.out_features
    found = check(
        loaded, part, lambda x: torch.full((len(x), size), torch.nan), with_many_rows=False
    )
    assert found.passed is False


def test_an_error_that_other_inputs_do_not_show_again_is_no_failure(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    (part,) = loaded.live_layers.parts("model.layers.0.mlp.up_proj")
    layer, calls = loaded.model.model.layers[0].mlp.up_proj, []

    def wrong_once(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return layer(x) * (1.5 if len(calls) == 1 else 1)

    assert check(loaded, part, wrong_once, with_many_rows=True).passed
    assert calls == [read_part.MANY_ROWS] * 2


def test_layers_that_the_files_do_not_name_have_no_parts(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    assert loaded_from(tmp_path).live_layers.parts("model.layers.9.mlp.up_proj") == []


@pytest.mark.parametrize("fate", ["gone", "replaced", "written to"])
def test_files_that_are_not_those_that_were_loaded_are_no_reference(tmp_path, fate):
    folder = tmp_path / "model"
    write_gptq_checkpoint(folder, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(folder)
    (file,) = folder.glob("*.safetensors")
    if fate == "gone":
        shutil.rmtree(folder)
    elif fate == "replaced":
        shutil.copy2(file, tmp_path / "other")
        (tmp_path / "other").replace(file)
    else:
        times = os.stat(file)
        with file.open("r+b") as opened:
            opened.write(opened.read(1))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    (part,) = loaded.live_layers.parts("model.layers.0.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"model\.safetensors (is gone|has changed)"):
        check(loaded, part, lambda x: x, with_many_rows=True)


def test_a_file_that_is_cut_short_while_it_is_read_is_named(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    weights = StoredWeights(open_checkpoint(tmp_path, None, None), load(str(tmp_path)).model)
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read any more"):
        weights("model.layers.0.mlp.up_proj")


@pytest.mark.slow
@pytest.mark.parametrize("branch", [str(branch) for branch in BRANCHES])
def test_every_layer_of_the_demo_passes(demo_cache, branch):
    loaded = load(branch, device="cpu", self_test=True, cache_dir=demo_cache, local_files_only=True)
    assert_right(loaded, 211)


def test_as_many_threads_compute_afterwards_as_before(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    num_threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        (part,) = loaded.live_layers.parts("model.layers.0.mlp.up_proj")
        layer = loaded.model.model.layers[0].mlp.up_proj

        def multiply(x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return layer(x)

        check(loaded, part, multiply, with_many_rows=True)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(num_threads)


def test_reading_in_another_thread_takes_no_thread_from_this_one(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    loaded = loaded_from(tmp_path)
    num_threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        (part,) = loaded.live_layers.parts("model.layers.0.mlp.up_proj")
        draw = loaded.live_layers._draw

        def look(*sizes: int) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return draw(*sizes)

        loaded.live_layers._draw = look
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loaded.live_layers.read, part, with_many_rows=True).result()
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(num_threads)


def test_without_a_self_test_nothing_goes_on(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    assert load(str(tmp_path), device="cpu").live_layers is None
