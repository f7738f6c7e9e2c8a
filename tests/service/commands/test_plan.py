"""`tetrad plan`, from the command line to its exit code, over a cache of header-only files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from loaders.catalogue import find as named_variants
from loaders.catalogue.model_card import MAX_MODEL_CARD_BYTES
from loaders.errors import RevisionNotFoundError
from loaders.planning import driver
from loaders.planning.accelerators import GIB
from loaders.planning.driver import FoundDevice
from loaders.planning.plan import MeasuredMemory, PlannedVariants
from loaders.quantization.plane_layout import MAX_FEW_ROWS
from service.cli import app
from service.commands.plan import exit_code
from service.commands.plan_request import PlanRequest, make_plan
from service.commands.plan_view import as_document, as_table
from service.settings import Settings
from tests import published
from tests.hub_server import HubRepository
from tests.planned import awq_70b, gptq_7b

BEST = "gptq-8bit-128g-actorder_True"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub cache with the 7B card's repository."""
    folder = tmp_path_factory.mktemp("cache")
    published.write_cache(folder, published.GPTQ_7B, published.gptq_repository())
    return folder


@pytest.fixture
def run(cache, monkeypatch):
    """Run `tetrad plan` with arguments; the hub is off."""
    monkeypatch.setattr("service.commands.repository_options.set_up_logs", lambda _: None)

    def run_plan(*arguments):
        options = ("--offline", "--cache-dir", str(cache))
        return CliRunner().invoke(app, ["plan", *arguments, *options])

    return run_plan


def test_a_repository_is_planned_for_a_card(run):
    result = run(published.GPTQ_7B, "--gpu", "CARD:24GB")
    assert result.exit_code == 0
    assert f"Take {BEST}: best expected quality" in result.output
    assert "not main: fits; lower expected quality (4-bit, groups of 128)" in result.output
    assert "7.11 GB  weights" in result.output
    assert "unverified" in result.output
    assert "vLLM: yes for main, gptq-8bit--1g-actorder_True; no for" in result.output
    assert "(act order)" in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--gpu", "CARD:24GB"), 0),
        (("--gpu", "CARD:24GB", "--users", "16"), 3),
        (("--gpu", "CARD:24GB", "--max-model-len", "100000"), 3),
        (("--gpu", "CARD:2GB"), 4),
        (("--gpu", "UNHEARDOF"), 2),
        (("--prefer", "beauty"), 2),
        (("--context", "0"), 2),
        (("--context", "many"), 2),
        (("--context", "9" * 5000), 2),
        (("--gpu", "CARD:24GB", "--max-model-len", "auto"), 0),
        (("--users", "0"), 2),
    ],
)
def test_the_exit_code_tells_whether_it_fits(run, arguments, code):
    result = run(published.GPTQ_7B, *arguments)
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_a_named_branch_is_planned_alone(run):
    result = run(f"{published.GPTQ_7B}:main", "--gpu", "CARD:24GB")
    assert result.exit_code == 0
    assert "Take main: the only one that fits" in result.output
    assert BEST not in result.output


@pytest.mark.parametrize(
    ("name", "there"),
    [(":mian", "main"), ("@0123456789", "main"), ("/file.gguf", "no GGUF file")],
)
def test_what_is_not_there_is_an_error_that_says_what_is(run, name, there):
    result = run(published.GPTQ_7B + name, "--gpu", "CARD:24GB")
    assert result.exit_code == 2
    assert "it has" in result.output
    assert there in result.output


@pytest.mark.parametrize("name", ["", "owner/nowhere", "a b", "owner/name/more"])
def test_nonsense_for_a_repository_is_one_line_and_code_2(run, name):
    result = run(name, "--gpu", "CARD:24GB")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "tetrad:" in result.output


def test_json_says_all_of_it(run):
    result = run(published.GPTQ_7B, "--gpu", "2xA10G:24GB", "--users", "4", "--json")
    document = json.loads(result.output)
    assert document["exit_code"] == result.exit_code == 0
    assert document["choice"]["variant"] == f"{published.GPTQ_7B}:{BEST}"
    assert document["devices"]["count"] == 2
    assert document["asked"] == {
        "context": 4096,
        "users": 4,
        "kv_cache_dtype": "auto",
        "prefer": "quality",
    }
    by_name = {entry["revision"]: entry for entry in document["variants"]}
    assert set(by_name) == {branch.name for branch in published.GPTQ_BRANCHES}
    chosen = by_name[BEST]
    assert chosen["chosen"]
    assert chosen["lost_because"] is None
    assert by_name["main"]["lost_because"].startswith("fits; lower")
    for entry in document["variants"]:
        assert set(entry) == {
            "variant", "revision", "file", "commit", "kind", "chosen", "fits", "lacks", "memory",
            "kv_cache_fp8", "fits_with_fp8", "max_context", "model_max_context", "backend",
            "backend_reason", "kernels", "quality", "bytes_per_token", "max_tokens_per_s",
            "verified", "remarks", "engines", "lost_because",
        }  # fmt: skip
        assert len(entry["memory"]) == 2
        for share in entry["memory"]:
            assert share["total"] == sum(share[key] for key in set(share) - {"total"})
        assert entry["verified"] is False


def answered(variants, gpu="CARD:24GB", context=None, **settings):
    question = PlanRequest(gpu, context=context, users=None, prefer=None)
    return make_plan(question, Settings(**settings), lambda: variants)


def test_without_a_choice_the_document_says_why():
    nothing_fits = answered(gptq_7b(), "CARD:2GB")
    document = as_document("repo", nothing_fits)
    assert document["choice"] is None
    assert document["reason"].startswith("nothing fits")
    assert exit_code(nothing_fits) == 4
    assert as_document("repo", answered([]))["variants"] == []


def test_where_nothing_fits_the_numbers_are_marked_as_predicted(run):
    result = run(published.GPTQ_7B, "--gpu", "CARD:2GB")
    assert result.exit_code == 4
    assert "unverified (predicted, not measured on such a device) of: all." in result.output


def test_what_was_measured_is_not_called_unverified():
    found = answered(gptq_7b())
    main, *others = found.planned.plans
    measured = replace(main, measured=MeasuredMemory(10, 10, "2026-11-01"))
    table = as_table(replace(found, planned=PlannedVariants((measured, *others), ())))
    line = next(line for line in table.splitlines() if "is unverified" in line)
    assert "main" not in line
    assert BEST in line


def test_several_gpus_are_shown_one_by_one_and_that_an_engine_takes_one():
    found = answered(awq_70b(), "2xA10G:24GB")
    table = as_table(found)
    assert "device 0:" in table
    assert "device 1:" in table
    assert "pipeline over layers" in table
    assert "Take main" in table
    assert "`tetrad serve` runs on one today and cannot do this" in table
    assert as_document("repo", found)["choice"]["needs_several_gpus"]
    assert exit_code(found) == 4


def test_what_fits_one_of_several_gpus_can_be_served():
    found = answered(gptq_7b(), "2xA10G:24GB")
    assert "cannot do this" not in as_table(found)
    assert exit_code(found) == 0


def test_what_no_option_says_comes_from_the_settings():
    found = answered(gptq_7b(), max_model_len=2048, users=3, prefer="memory", kv_cache_dtype="fp8")
    document = as_document("repo", found)
    assert document["asked"] == {
        "context": 2048,
        "users": 3,
        "kv_cache_dtype": "fp8",
        "prefer": "memory",
    }
    assert "2048 tokens x 3 users; keys and values in fp8;" in as_table(found)
    assert "least memory" in document["reason"]
    own_choice = answered(gptq_7b(), context="auto", max_model_len=2048)
    assert as_document("repo", own_choice)["asked"]["context"] == 4096
    halves, eighths = (
        answered(gptq_7b(), kv_cache_dtype=dtype).choice.plan.memory[0].kv_cache
        for dtype in ("auto", "fp8")
    )
    assert eighths < 0.6 * halves
    small_share = answered(gptq_7b(), gpu_memory_utilization=0.1)
    assert small_share.choice.plan is None
    assert answered(gptq_7b(), gpu_memory_utilization=0.9).choice.plan is not None


def test_auto_plans_for_what_is_free_where_an_engine_would_run(monkeypatch):
    gpus = [FoundDevice("NVIDIA A10G", f"GPU-{i}", 24 * GIB, 10**9 * i) for i in (9, 15)]
    monkeypatch.setattr(driver, "found_by_driver", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hidden = answered(gptq_7b(), "auto")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    both = answered(gptq_7b(), "auto")
    assert [f.devices.memory_bytes for f in (hidden, both)] == [9 * 10**9, 15 * 10**9]
    assert hidden.choice.plan.max_context[1] < both.choice.plan.max_context[1]
    assert (
        both.choice.plan.max_context[16] < answered(gptq_7b(), "A10G").choice.plan.max_context[16]
    )


def test_auto_asks_no_pytorch_what_this_machine_has():
    script = """
import sys
sys.modules["torch"] = None
from service.commands.plan_request import PlanRequest, make_plan
from service.settings import Settings
make_plan(PlanRequest("auto", None, None, None), Settings(), list)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_plan_says_which_kernels_run_on_the_gpu_and_up_to_how_many_rows():
    texts, documents = {}, {}
    for name in ("T4", "H200"):
        found = answered(gptq_7b(), name)
        texts[name], documents[name] = as_table(found), as_document("repo", found)
    assert "needs compute capability 8.0, this GPU has 7.5" in texts["T4"]
    assert "kernel: triton runs 224 layers" in texts["H200"]
    assert f"packed up to {MAX_FEW_ROWS} rows, from {MAX_FEW_ROWS + 1} on" in texts["H200"]
    assert documents["T4"]["devices"]["compute_capability"] == "7.5"
    (slow,), (fast,) = (documents[name]["variants"][0]["kernels"] for name in ("T4", "H200"))
    assert (slow["kernel"], slow["layers"], slow["max_packed_rows"]) == ("reference", 224, 0)
    assert (fast["kernel"], fast["layers"]) == ("triton", 224)
    assert fast["max_packed_rows"] == MAX_FEW_ROWS


def test_memory_of_graphs_is_told_on_a_gpu_and_not_on_a_cpu():
    on_gpu, on_cpu = (as_table(answered(gptq_7b(), name)) for name in ("H200", "cpu:64GB"))
    assert "memory that CUDA graphs share" in on_gpu
    assert "sampling's tables" in on_gpu
    assert "graphs" not in on_cpu
    assert "sampling's tables" not in on_cpu


def test_names_from_a_hub_cannot_steer_the_terminal():
    evil = replace(gptq_7b()[0], revision="\x1b[2J[bold]x[/bold]\u202e")
    refused = replace(gptq_7b()[1], revision="b\x07", refusal="\x1b]0;owned\x07")
    table = as_table(answered([evil, refused], "CA\x1bRD:24GB"))
    assert "?[2J[bold]x[/bold]?" in table
    assert not {"\x1b", "\x07", "\u202e"} & set(table)


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch):
    monkeypatch.setattr(command_view(), "_WIDTH_OF_FILES", 80)
    table = as_table(answered(gptq_7b()))
    head = next(line for line in table.splitlines() if "variant" in line)
    assert "kernel" not in head
    assert len(head.rstrip()) <= 80
    rows = [line.split() for line in table.splitlines()]
    for branch in published.GPTQ_BRANCHES:
        assert any(branch.name in row[:2] for row in rows), "a name was broken in two"


def test_what_does_not_fit_is_still_told_with_its_quality():
    lines = as_table(answered(gptq_7b(), "CARD:12GB", users=4)).splitlines()
    (best,) = [line for line in lines if line.startswith(f"  not {BEST}: lacks")]
    assert best.endswith("; 8-bit, groups of 128, act order")


def test_an_engine_that_treats_variants_alike_gets_one_word():
    gptq, awq = gptq_7b()[0], replace(awq_70b()[0], revision="awq")
    lines = as_table(answered([gptq, awq])).splitlines()
    assert "  Tetrad: yes" in lines
    assert "  llama.cpp: no (reads GGUF only)" in lines
    assert "  SGLang: yes for main (on Marlin); unknown for awq" in lines
    assert "  unknown: TGI (in maintenance mode)" in lines
    assert (
        "  AutoGPTQ: no for main (archived; does not import beside Transformers 5); no for awq"
        " (reads GPTQ only)"
    ) in lines


def command_view():
    from service.commands import plan_view

    return plan_view


def test_errors_of_the_hub_are_shown_as_text(run, monkeypatch):
    def fail(*_, **__):
        raise RevisionNotFoundError("no \x1b[31mbranch")

    monkeypatch.setattr(named_variants, "find_variants", fail)
    result = run(published.GPTQ_7B)
    assert result.exit_code == 2
    assert "no ?[31mbranch" in result.output


@pytest.mark.slow
def test_json_stays_json_where_something_is_logged(tmp_path):
    files = published.gptq_files(published.CODELLAMA_7B, published.GPTQ_BRANCHES[0])
    branch = {**files, "README.md": bytes(MAX_MODEL_CARD_BYTES + 1)}
    published.write_cache(tmp_path, published.GPTQ_7B, HubRepository({"main": branch}))
    arguments = (published.GPTQ_7B, "--gpu", "CARD:24GB", "--json", "--offline")
    done = subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", "plan", *arguments],
        env={**os.environ, "TETRAD_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 0
    assert "card_cut" in done.stderr


def test_a_private_repository_is_planned_with_a_token(run, monkeypatch):
    given = {}

    def find(*_, **access):
        given.update(access)
        return gptq_7b()

    monkeypatch.setattr(named_variants, "find_variants", find)
    assert run(published.GPTQ_7B, "--gpu", "CARD:24GB", "--hub-token", "hf_secret").exit_code == 0
    assert (given["token"], given["local_files_only"]) == ("hf_secret", True)
