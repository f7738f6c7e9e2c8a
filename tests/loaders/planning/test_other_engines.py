"""Verdicts on other engines: only what their releases say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loaders.planning.other_engines import sources, verdicts
from loaders.quantization.packed_format import PackedFormat
from tests.planned import awq_70b, fp16_34b, gguf_13b, gptq_7b


def _answers(variant):
    return {verdict.engine: verdict.can_load for verdict in verdicts(variant)}


def test_vllm_refuses_four_of_the_six_branches_for_their_act_order():
    found = {v.revision: _answers(v)["vLLM"] for v in gptq_7b()}
    assert found == {
        "main": "yes",
        "gptq-4bit-32g-actorder_True": "no",
        "gptq-4bit-64g-actorder_True": "no",
        "gptq-4bit-128g-actorder_True": "no",
        "gptq-8bit--1g-actorder_True": "yes",
        "gptq-8bit-128g-actorder_True": "no",
    }


def _main_branch(*, bits=4, group_size=128, sym=True, desc_act=False):
    main = gptq_7b()[0]
    base = PackedFormat("gptq", "gptq", bits, group_size)
    return replace(
        main, quantization=replace(main.quantization, base=base, sym=sym, desc_act=desc_act)
    )


@pytest.mark.parametrize("change", [{"bits": 3}, {"sym": False}])
def test_vllm_takes_other_widths_and_zero_points_where_groups_are_in_order(change):
    found = {v.engine: v for v in verdicts(_main_branch(**change))}["vLLM"]
    assert (found.can_load, found.why) == ("yes", "with its humming kernels")
    for group_size in (128, -1):
        variant = _main_branch(**change, group_size=group_size, desc_act=True)
        found = {v.engine: v for v in verdicts(variant)}["vLLM"]
        assert (found.can_load, found.why) == ("no", "act order")


@pytest.mark.parametrize("engine", ["SGLang", "Aphrodite"])
def test_engines_with_marlin_take_symmetric_4_and_8_bits_in_its_groups_in_any_order(engine):
    for bits in (4, 8):
        for group_size in (-1, 32, 64, 128):
            variant = _main_branch(bits=bits, group_size=group_size, desc_act=True)
            assert _answers(variant)[engine] == "yes"
    for change in ({"bits": 3}, {"sym": False}, {"group_size": 256}):
        assert _answers(_main_branch(**change))[engine] == "unknown"


def test_mistral_rs_takes_4_and_8_bits():
    found = {bits: _answers(_main_branch(bits=bits))["mistral.rs"] for bits in (2, 3, 4, 8)}
    assert found == {2: "unknown", 3: "unknown", 4: "yes", 8: "yes"}


def test_lmdeploy_takes_groups_of_128_without_act_order():
    found = [_answers(v)["LMDeploy"] for v in gptq_7b()]
    assert found == ["yes", "no", "no", "no", "no", "no"]


@pytest.mark.parametrize("engine", ["TabbyAPI", "text-generation-webui"])
def test_engines_that_dropped_their_gptq_loader_load_no_such_branch(engine):
    assert {_answers(variant)[engine] for variant in gptq_7b()} == {"no"}
    for variant in (*awq_70b(), *fp16_34b(), *gguf_13b()):
        assert _answers(variant)[engine] == "unknown"


def test_llama_cpp_reads_gguf_and_nothing_else():
    assert _answers(gguf_13b()[0])["llama.cpp"] == "yes"
    for variant in (*gptq_7b(), *awq_70b(), *fp16_34b()):
        assert _answers(variant)["llama.cpp"] == "no"


def test_what_nobody_tried_is_unknown():
    for variant in (*awq_70b(), *fp16_34b(), *gguf_13b()):
        assert _answers(variant)["SGLang"] == "unknown"
        assert _answers(variant)["mistral.rs"] == "unknown"
        assert _answers(variant)["TGI"] == "unknown"


def test_our_own_refusal_is_told_first():
    variant = replace(gptq_7b()[0], refusal="a mixture of experts")
    own = verdicts(variant)[0]
    assert (own.engine, own.can_load, own.why) == ("Tetrad", "no", "a mixture of experts")
    own = verdicts(gptq_7b()[0])[0]
    assert (own.engine, own.can_load, own.why) == ("Tetrad", "yes", "")


def test_every_line_has_a_version_a_source_and_a_date():
    for name, version, source, read in sources():
        assert name
        assert version
        assert source
        assert read.startswith("20")
