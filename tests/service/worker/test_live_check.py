"""The live check of a real engine's layers: as they are fused, by name, and what it reports."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.core import Engine
from engine.process.live_check import PartOutcome
from loaders.load import load
from loaders.model.kernels.ways import WayChoice
from loaders.model.packed_linear import packed_layers
from loaders.model.self_test.read_part import ReadPart
from service.worker.live_check import LayerCheck, make_live_check
from service.worker_protocol.load_attempt import FailureKind, StartFailure
from tests.damage import kernels_in_use, scale_one_group
from tests.models import tiny_llama, tiny_qwen2, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def engine_of(
    folder: Path, *, is_batch_invariant: bool = False, **options: Any
) -> tuple[Engine, LayerCheck, set[str]]:
    """An engine, the check of its layers, and the names of the layers that the model had."""
    loaded = load(str(folder), device="cpu", self_test=True, **options)
    names = set(packed_layers(loaded.model))
    config = EngineConfig(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=64,
        num_blocks=8,
        is_batch_invariant=is_batch_invariant,
    )
    engine = Engine(loaded.model, config)
    check = make_live_check(engine.linears(), loaded.live_layers, loaded.provenance.backend)
    assert check is not None
    return engine, check, names


def round_of(check: LayerCheck) -> list[StartFailure]:
    """Everything that two rounds find: one with many rows at once, one with few."""
    found = [check.read_next()() for _ in range(2 * check.num_parts)]
    assert PartOutcome.SKIPPED not in found
    return [
        StartFailure.decode(one.start_failure) for one in found if one is not PartOutcome.PASSED
    ]


@pytest.mark.parametrize(
    ("make_model", "is_batch_invariant"), [(tiny_llama, True), (tiny_qwen2, False)]
)
def test_all_layers_are_checked_as_the_engine_fused_them(tmp_path, make_model, is_batch_invariant):
    write_gptq_checkpoint(tmp_path, make_model(), tokenizer=tiny_tokenizer())
    engine, check, names = engine_of(tmp_path, is_batch_invariant=is_batch_invariant)
    assert {name for one in engine.linears() for name in one.names} >= names
    assert {part.part.name for part in check._parts} == names
    assert round_of(check) == []


def test_layers_that_could_not_be_fused_are_checked_too(tmp_path):
    write_gptq_checkpoint(
        tmp_path,
        tiny_llama(),
        tokenizer=tiny_tokenizer(),
        desc_act=True,
        siblings_share_order=False,
    )
    engine, check, names = engine_of(tmp_path)
    assert check.num_parts >= len(names)
    assert round_of(check) == []
    scale_one_group(engine.linears(), "model.layers.0.self_attn.k_proj", 2)
    assert {failure.self_test.checks[0].name for failure in round_of(check)} == {
        "model.layers.0.self_attn.k_proj"
    }


def test_the_way_of_prompts_is_compared_though_no_other_rows_are_ever_so_many(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    engine, check, _ = engine_of(tmp_path)
    name = "model.layers.0.mlp.down_proj"
    kernel, _ = kernels_in_use(engine.linears(), name)
    many = next(way for way in kernel.ways_of_many() if way not in kernel.FEW)
    kernel.choose(WayChoice("int4pack", many, None))
    assert round_of(check) == []
    right = type(kernel).MANY[many](kernel)
    kernel.product_of_many = lambda: lambda x: right(x) * 1.5
    failures = round_of(check)
    assert [failure.self_test.checks[0].name for failure in failures] == [name]
    assert "rows at once" in failures[0].self_test.checks[0].detail


@pytest.mark.parametrize("is_batch_invariant", [False, True])
def test_layers_of_families_without_fused_ones_are_checked_too(tmp_path, is_batch_invariant):
    model = tiny_llama(hidden_act="gelu")  # which keeps Transformers' own layers
    write_gptq_checkpoint(tmp_path, model, tokenizer=tiny_tokenizer())
    engine, check, names = engine_of(tmp_path, is_batch_invariant=is_batch_invariant)
    assert {part.part.name for part in check._parts} == names
    assert round_of(check) == []
    if not is_batch_invariant:
        scale_one_group(engine.linears(), "model.layers.1.mlp.down_proj", 2)
        assert round_of(check)


def test_damage_to_a_fused_kernel_is_blamed_on_the_layer_whose_outputs_are_wrong(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    engine, check, _ = engine_of(tmp_path)
    damaged = [f"model.layers.1.{part}" for part in ("self_attn.v_proj", "mlp.up_proj")]
    for name in damaged:
        scale_one_group(engine.linears(), name, 2)
    failures = round_of(check)
    assert [failure.self_test.checks[0].name for failure in failures] == damaged * 2
    assert failures[0].kind is FailureKind.LIVE_CHECK
    assert failures[0].backends == ("int4pack",)
    assert not failures[0].self_test.passed
    assert failures[0].self_test.backend == "int4pack"


def test_the_reason_names_layer_kernel_and_error(tmp_path):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    engine, check, _ = engine_of(tmp_path)
    scale_one_group(engine.linears(), "model.layers.0.self_attn.q_proj", torch.nan)
    failure = check.read_next()()
    layer = "model.layers.0.self_attn.q_proj"
    assert failure.reason.startswith(
        f"{layer} differs from its files while the model is served: int4pack: "
    )
    assert failure.reason.endswith("its kernel, its memory or the files have changed")


def test_the_last_kernel_that_there_is_is_not_taken_out(tmp_path):
    """What the reference computes wrongly is memory's fault, and no other kernel is left."""
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    engine, check, _ = engine_of(tmp_path, backend="reference")
    kernel, _ = kernels_in_use(engine.linears(), "model.layers.0.mlp.up_proj")
    kernel._packed.stored["scales"][0] *= 2
    (first, *_) = round_of(check)
    assert first.backends == ()


def test_files_that_are_gone_are_a_problem_and_no_failure(tmp_path):
    folder = tmp_path / "model"
    write_gptq_checkpoint(folder, tiny_llama(), tokenizer=tiny_tokenizer())
    _, check, _ = engine_of(folder)
    shutil.rmtree(folder)
    with capture_logs() as lines:
        assert check.read_next()() is PartOutcome.SKIPPED
    assert "model.safetensors is gone" in check.problem
    assert [line["event"] for line in lines] == ["live_check_impossible"]


@pytest.mark.parametrize("when", ["reading", "comparing"])
def test_want_of_memory_is_no_failure_and_nothing_that_passed(tmp_path, monkeypatch, when):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    _, check, _ = engine_of(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if when == "reading":
        monkeypatch.setattr(check._layers, "read", full)
    else:
        monkeypatch.setattr(ReadPart, "compare", full)
    assert check.read_next()() is PartOutcome.SKIPPED
    assert check.problem is None


def test_a_model_of_which_nothing_is_kept_is_not_checked():
    assert make_live_check([], None, "dense") is None
