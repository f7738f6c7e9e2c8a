"""Plans and choices for the published repositories, and what is done where nothing fits."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from loaders.catalogue.variants import VariantKind, list_variants
from loaders.planning.accelerators import GIB, Devices, parse_gpus
from loaders.planning.plan import (
    DEFAULT_CONTEXT,
    SEVERAL_GPUS,
    choose,
    plan_variant,
    plan_variants,
)
from loaders.quantization.plane_layout import MAX_FEW_ROWS
from loaders.records import Records
from loaders.repository.opening import open_repository
from loaders.repository.spec import parse_spec
from tests import published
from tests.planned import awq_70b, fp16_34b, gguf_13b, gptq_7b

ACT_32G, ACT_64G = "gptq-4bit-32g-actorder_True", "gptq-4bit-64g-actorder_True"
BEST_8BIT = "gptq-8bit-128g-actorder_True"


def _choose(variants, gpu, users=1, prefer="quality", context=4096):
    planned = plan_variants(variants, parse_gpus(gpu), context=context, users=users)
    return choose(planned, prefer)


@pytest.mark.parametrize(
    ("gib", "users", "branch", "context"),
    [
        (24, 1, BEST_8BIT, 4096),
        (24, 4, BEST_8BIT, 4096),
        (24, 16, ACT_32G, 2192),
        (16, 1, BEST_8BIT, 4096),
        (16, 4, ACT_32G, 4096),
        (16, 16, ACT_32G, 1280),
        (12, 1, BEST_8BIT, 4096),
        (12, 4, ACT_32G, 3280),
        (12, 16, ACT_32G, 816),
        (8, 1, ACT_32G, 4096),
        (8, 4, ACT_32G, 1440),
        (8, 16, ACT_32G, 352),
        (6, 1, ACT_64G, 2448),
        (6, 4, ACT_64G, 608),
        (6, 16, ACT_64G, 144),
    ],
)
def test_which_branch_of_the_7b_card_is_taken(gib, users, branch, context):
    choice = _choose(gptq_7b(), f"CARD:{gib}GB", users)
    assert choice.plan.variant.revision == branch
    assert choice.context == context
    assert choice.is_shortened == (context < 4096)
    assert len(choice.losers) == 5


# A code a byte, a scale for each 128 of them, an order for each of seven layers of 32 blocks; the
# embedding, the head and 65 norms are dense.
NUM_WEIGHTS_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
PACKED_7B_8BIT = NUM_WEIGHTS_7B + 2 * NUM_WEIGHTS_7B // 128 + 32 * 8 * (6 * 4096 + 11008)
DENSE_7B = 2 * (2 * 32016 * 4096 + 65 * 4096)


def test_7b_on_12_gib_by_hand():
    """8-bit 128g: 7.111 GB, a cache of 257 blocks, and the CUDA context in 0.9 of 12 GiB."""
    plan = _choose(gptq_7b(), "CARD:12GB").plan
    lasting = plan.fullest.weights + plan.fullest.kv_cache + plan.fullest.context
    assert plan.fullest.weights == PACKED_7B_8BIT + DENSE_7B == 7_111_385_088
    assert plan.fullest.kv_cache == 257 * 16 * 524_288
    assert lasting == plan.fullest.lasting == 7_111_385_088 + 2_155_872_256 + 500 * 1024**2
    assert lasting <= 0.9 * 12 * GIB
    assert plan.fullest.total == 10_382_828_416
    assert plan.fullest.total <= 12 * GIB
    # One more block of each of 1 user's sequence would pass the share: 7 536 tokens are 471 blocks.
    assert plan.max_context[1] == 7536
    room = int(0.9 * 12 * GIB) - 7_111_385_088 - 500 * 1024**2
    assert room // (16 * 524_288) - 1 == 471


def test_what_is_missing_is_said_to_the_byte():
    planned = plan_variants(gptq_7b(), parse_gpus("CARD:8GB"), context=4096)
    lacking = next(p for p in planned.plans if p.variant.revision == BEST_8BIT)
    lasting = 7_111_385_088 + 257 * 16 * 524_288 + 500 * 1024**2
    assert lacking.shortfall == lasting - int(0.9 * 8 * GIB)
    planned = plan_variants(gptq_7b(), parse_gpus("CARD:24GB"), context=4096, users=16)
    lacking = next(p for p in planned.plans if p.variant.revision == "main")
    lasting = 3_864_272_896 + 4097 * 16 * 524_288 + 500 * 1024**2
    assert lacking.shortfall == lasting - int(0.9 * 24 * GIB)


def test_an_old_gpu_gets_the_reference_and_a_new_one_triton():
    old, new = (plan_variant(gptq_7b()[0], parse_gpus(name)) for name in ("T4", "H200"))
    assert (old.backend, new.backend) == ("reference", "triton")
    assert "needs compute capability 8.0, this GPU has 7.5" in old.backend_reason
    assert [(use.kernel, use.max_packed_rows) for use in old.kernels] == [("reference", 0)]
    assert [(use.kernel, use.max_packed_rows) for use in new.kernels] == [("triton", MAX_FEW_ROWS)]
    # It unpacks a layer whole, in float32, and records no steps.
    assert old.fullest.workspace == 9 * 4096 * 11008
    assert new.fullest.workspace < old.fullest.workspace / 4
    assert (old.fullest.graphs, old.fullest.graph_launches) == (0, 0)
    assert new.fullest.graphs > 0


def test_where_triton_is_missing_the_plan_says_so():
    here = replace(parse_gpus("A10G"), has_triton=False)
    plan = plan_variant(gptq_7b()[0], here)
    assert plan.backend == "reference"
    assert "needs Triton" in plan.backend_reason


def test_an_engine_for_more_sequences_leaves_less_for_their_context():
    few, many = (
        plan_variant(gptq_7b()[0], parse_gpus("CARD:6GB"), max_num_seqs=count) for count in (1, 256)
    )
    assert few.fullest.graphs + few.fullest.slots < many.fullest.graphs + many.fullest.slots
    assert few.max_context[1] > many.max_context[1]


def test_70b_awq_on_48_gb():
    choice = _choose(awq_70b(), "CARD:48GB")
    # The card says 36.61 GB; scales take as much, AWQ's zero points a byte for half a byte.
    assert choice.plan.fullest.weights == 36_881_580_032
    assert choice.plan.fullest.kv_cache == 257 * 16 * 320 * 1024
    assert choice.plan.max_context == {1: 4096, 4: 4096, 16: 1696}
    assert "the only one" in choice.reason


def test_70b_awq_on_twice_24_gb_says_how_it_is_spread():
    choice = _choose(awq_70b(), "2xCARD:24GB")
    assert len(choice.plan.memory) == 2
    assert choice.plan.fullest.total < 24 * GIB
    assert SEVERAL_GPUS in choice.plan.remarks
    assert not any(SEVERAL_GPUS in p.remarks for p in [_choose(awq_70b(), "CARD:48GB").plan])
    # The same cards with error correction on hold it too, for fewer users.
    assert _choose(awq_70b(), "2xA10G:24GB").plan.max_context == {1: 4096, 4: 4096, 16: 1040}


def test_70b_awq_does_not_fit_one_24_gb_card():
    choice = _choose(awq_70b(), "CARD:24GB")
    assert choice.plan is None
    assert choice.context == 0
    assert "nothing fits" in choice.reason
    assert "lacks" in choice.losers[0].reason


def test_34b_fp16_on_80_gb():
    choice = _choose(fp16_34b(), "CARD:80GB")
    assert choice.plan.fullest.weights == 67_487_940_608
    assert choice.plan.fullest.workspace == 0
    assert choice.plan.backend == "dense"
    assert choice.plan.max_context == {1: 16384, 4: 11808, 16: 2944}


def test_13b_gguf_on_16_gb():
    choice = _choose(gguf_13b(), "CARD:16GB")
    assert choice.plan.variant.gguf_type == "Q5_K_M"
    lost = {loser.variant.gguf_type: loser.reason for loser in choice.losers}
    assert lost["Q8_0"].startswith("lacks")
    assert lost["Q6_K"].startswith("lacks 0.00 GB")  # by a few MB; 17 GB would do
    assert lost["Q5_K_S"].startswith("fits; lower expected quality")
    assert _choose(gguf_13b(), "CARD:17GB").plan.variant.gguf_type == "Q6_K"


def test_a_little_more_context_does_not_buy_the_worst_quality():
    """Q2_K and Q3_K_S reach 2 464 tokens for four users, Q3_K_M 2 272."""
    choice = _choose(gguf_13b(), "CARD:16GB", users=4)
    assert choice.plan.variant.gguf_type == "Q3_K_M"
    assert choice.context == 2272


def test_preferences_change_the_choice():
    assert _choose(gptq_7b(), "CARD:24GB", prefer="quality").plan.variant.revision == BEST_8BIT
    fastest = _choose(gptq_7b(), "CARD:24GB", prefer="speed")
    smallest = _choose(gptq_7b(), "CARD:24GB", prefer="memory")
    # 128g with act order keeps the orders of its inputs besides what main does.
    assert fastest.plan.variant.revision == "main"
    assert smallest.plan.variant.revision == "main"
    assert "GB more a token" in " ".join(loser.reason for loser in fastest.losers)
    assert "GB more memory" in " ".join(loser.reason for loser in smallest.losers)


def test_the_reason_is_one_line_and_so_is_every_loss():
    choice = _choose(gptq_7b(), "CARD:8GB")
    for line in (choice.reason, *(loser.reason for loser in choice.losers)):
        assert line
        assert "\n" not in line


def test_more_memory_never_shortens_a_context():
    """And more users never lengthen one."""
    reached = []
    for gib in range(4, 40, 3):
        plan = plan_variant(gptq_7b()[1], Devices("cuda", "x", 1, gib * GIB))
        assert plan.max_context[1] >= plan.max_context[4] >= plan.max_context[16]
        reached.append(plan.max_context[4])
    assert reached == sorted(reached)
    assert reached[0] == 0


def test_what_fits_at_the_longest_context_fits_and_a_block_more_does_not():
    devices = parse_gpus("CARD:16GB")
    plan = plan_variant(gptq_7b()[5], devices, context=4096, users=4)
    longest = plan.max_context[4]
    assert plan_variant(gptq_7b()[5], devices, context=longest, users=4).fits
    assert not plan_variant(gptq_7b()[5], devices, context=longest + 16, users=4).fits


def test_the_default_context_is_bounded_by_the_model():
    plan = plan_variant(gptq_7b()[0], parse_gpus("CARD:24GB"))
    assert plan.demand.context == DEFAULT_CONTEXT
    short = replace(gptq_7b()[0], config={**gptq_7b()[0].config, "max_position_embeddings": 1000})
    assert plan_variant(short, parse_gpus("CARD:24GB")).demand.context == 1000
    assert plan_variant(short, parse_gpus("CARD:24GB")).max_context[1] == 1000


def test_a_context_beyond_the_model_gets_what_it_was_made_for():
    choice = _choose(gptq_7b(), "CARD:80GB", context=20000)
    assert choice.is_shortened
    assert choice.context == 16384
    assert not choice.plan.fits
    assert "was made for 16384 tokens, 20000 are asked for" in choice.losers[0].reason


def test_fp8_is_named_where_only_it_fits():
    """16 users of 4 096 tokens: 34 GB of fp16, 17.5 GB of fp8."""
    plan = plan_variant(gptq_7b()[0], parse_gpus("CARD:24GB"), context=4096, users=16)
    assert not plan.fits
    assert any("fp8" in remark for remark in plan.remarks)
    assert plan.kv_cache_fp8 == 4097 * 16 * 2 * 32 * 32 * 130


def test_variants_that_cannot_be_loaded_lose_with_their_reason():
    moe = replace(gptq_7b()[0], refusal="a mixture of experts is not read")
    damaged = replace(gptq_7b()[1], config={})
    other = replace(gptq_7b()[2], kind=VariantKind.OTHER)
    planned = plan_variants([moe, damaged, other, gptq_7b()[3]], parse_gpus("CARD:24GB"))
    assert [len(planned.plans), len(planned.refused)] == [1, 3]
    reasons = " ".join(loser.reason for loser in choose(planned).losers)
    assert "mixture of experts" in reasons
    assert "num_hidden_layers" in reasons or "hidden_size" in reasons


def test_nothing_to_choose_from_is_no_choice():
    choice = choose(plan_variants([], parse_gpus("CARD:24GB")))
    assert choice.plan is None
    assert "nothing that can be loaded" in choice.reason


def test_perplexity_decides_where_all_have_one(tmp_path):
    variants = gptq_7b()[:3]
    records = Records(tmp_path)
    for variant, perplexity in zip(variants, (10.0, 11.0, 12.0), strict=True):
        records.write(variant.commit, "perplexity", perplexity)
    devices = parse_gpus("CARD:24GB")
    choice = choose(plan_variants(variants, devices, records=records))
    assert choice.plan.variant.revision == "main"
    assert "perplexity 10.00" in choice.reason
    partly = choose(plan_variants([*variants, gptq_7b()[3]], devices, records=records))
    assert partly.plan.variant.revision == ACT_32G


def test_a_prediction_is_unverified_until_it_was_measured(tmp_path):
    variant, records = gptq_7b()[0], Records(tmp_path)
    devices = parse_gpus("CARD:24GB")
    before = plan_variant(variant, devices, records=records)
    assert before.remarks[0].startswith("unverified")
    record = {"predicted": 10**10, "measured": 11 * 10**9, "kv_cache": 1, "date": "2026-11-21"}
    records.write(variant.commit, "memory:cuda:triton", record)
    after = plan_variant(variant, devices, records=records)
    assert "11.00 GB, predicted 10.00" in after.remarks[0]
    assert after.fullest.weights == round(before.fullest.weights * 1.1)
    assert after.fullest.workspace == round(before.fullest.workspace * 1.1)
    assert after.fullest.kv_cache == before.fullest.kv_cache
    on_cpu = plan_variant(variant, parse_gpus("cpu:24GB"), records=records)
    assert on_cpu.measured is None


@pytest.mark.parametrize(
    "record",
    [
        "text",
        {"predicted": 0, "measured": 5},
        {"predicted": True, "measured": 5},
        {"predicted": -3, "measured": 5},
        {"predicted": 5},
        [1],
    ],
)
def test_a_record_that_makes_no_sense_counts_as_none(tmp_path, record):
    variant, records = gptq_7b()[0], Records(tmp_path)
    records.write(variant.commit, "memory:cuda:triton", record)
    assert plan_variant(variant, parse_gpus("CARD:24GB"), records=records).measured is None


def test_a_strange_record_moves_a_plan_no_further_than_twofold(tmp_path):
    variant, records = gptq_7b()[0], Records(tmp_path)
    record = {"predicted": 1, "measured": 10**12, "kv_cache": 1, "date": 5}
    records.write(variant.commit, "memory:cuda:triton", record)
    plan = plan_variant(variant, parse_gpus("CARD:24GB"), records=records)
    unmoved = plan_variant(variant, parse_gpus("CARD:24GB")).fullest.weights
    assert plan.fullest.weights == 2 * unmoved


def test_bandwidth_bounds_the_speed_of_known_cards_only():
    known = plan_variant(gptq_7b()[0], parse_gpus("A10G"))
    assert known.max_tokens_per_s == pytest.approx(600e9 / known.bytes_per_token)
    assert plan_variant(gptq_7b()[0], parse_gpus("CARD:24GB")).max_tokens_per_s is None


def test_cpu_plans_count_the_process_and_warn_of_the_caches_limit():
    plan = plan_variant(gptq_7b()[0], parse_gpus("cpu:16GB"), context=4096, users=2)
    assert plan.backend == "int4pack"
    assert plan.fullest.kv_cache == 513 * 16 * 2**20
    assert any("--kv-cache-size" in remark for remark in plan.remarks)
    small = plan_variant(gptq_7b()[0], parse_gpus("cpu:16GB"), context=1024)
    assert not any("--kv-cache-size" in remark for remark in small.remarks)


def test_planning_imports_neither_torch_nor_transformers():
    script = (
        "import sys, loaders.planning.plan, service.commands.plan_view;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "repository", "variants", "gpu"),
    [
        (published.GPTQ_7B, published.gptq_repository, gptq_7b, "CARD:16GB"),
        (published.AWQ_70B, published.awq_repository, awq_70b, "CARD:48GB"),
        (published.FP16_34B, published.dense_repository, fp16_34b, "CARD:80GB"),
        (published.GGUF_13B, published.gguf_repository, gguf_13b, "CARD:16GB"),
    ],
)
def test_what_the_catalogue_reads_is_planned_alike(tmp_path, name, repository, variants, gpu):
    published.write_cache(tmp_path, name, repository())
    opened = open_repository(parse_spec(name), cache_dir=tmp_path, local_files_only=True)
    read = plan_variants(list_variants(opened), parse_gpus(gpu), context=4096)
    expected = plan_variants(variants(), parse_gpus(gpu), context=4096)
    assert not read.refused
    found = {(p.variant.revision, p.variant.file): p.memory for p in read.plans}
    assert found == {(p.variant.revision, p.variant.file): p.memory for p in expected.plans}
    assert choose(read).reason == choose(expected).reason


def test_layers_that_the_model_does_not_have_take_no_memory():
    whole = fp16_34b()[0]
    half = replace(whole, config={**whole.config, "num_hidden_layers": 24})
    tensors = {
        name: tensor
        for name, tensor in whole.tensors.items()
        if not (match := re.search(r"layers\.(\d+)\.", name)) or int(match[1]) < 24
    }
    cut = replace(half, tensors=tensors)
    devices = parse_gpus("CARD:80GB")
    assert plan_variant(half, devices).memory == plan_variant(cut, devices).memory
    assert (
        plan_variant(half, devices).fullest.weights < plan_variant(whole, devices).fullest.weights
    )


def test_perplexities_that_hardly_differ_leave_the_choice_to_speed(tmp_path):
    records = Records(tmp_path)
    variants = gptq_7b()
    for variant in variants:
        is_eight = variant.quantization.base.bits == 8
        grouped = variant.quantization.base.group_size != -1
        records.write(variant.commit, "perplexity", (7.0 if grouped else 7.02) if is_eight else 8.0)
    choice = choose(plan_variants(variants, parse_gpus("A100-80"), records=records))
    assert choice.plan.variant.revision == "gptq-8bit--1g-actorder_True"
    lost = {loser.variant.revision: loser.reason for loser in choice.losers}
    assert "as good, reads 0." in lost["gptq-8bit-128g-actorder_True"]
    assert "as good" not in lost["main"]
