"""`tetrad plan`, from the command line to its exit code, over a cache of header-only files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from loaders import named_variants
from loaders.accelerators import parse_gpus
from loaders.card import MAX_CARD_BYTES
from loaders.errors import RevisionNotFoundError
from loaders.plan import MeasuredMemory, PlannedVariants, choose, plan_variants
from service.cli import app
from service.commands.plan import exit_code
from service.commands.plan_view import as_document, as_table
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
    monkeypatch.setattr("service.commands.looking.set_up_logs", lambda _: None)

    def run_plan(*arguments):
        options = ("--offline", "--cache-dir", str(cache))
        return CliRunner().invoke(app, ["plan", *arguments, *options])

    return run_plan


def test_a_repository_is_planned_for_a_card(run):
    result = run(published.GPTQ_7B, "--gpu", "CARD:24GB")
    assert result.exit_code == 0
    assert f"Take {BEST}: best expected quality" in result.output
    assert "not main: fits; lower expected quality (4-bit, groups of 128)" in result.output
    assert "7.16 GB  weights" in result.output
    assert "unverified" in result.output
    assert "vLLM no (act order)" in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--gpu", "CARD:24GB"), 0),
        (("--gpu", "CARD:24GB", "--users", "16"), 3),
        (("--gpu", "CARD:24GB", "--context", "100000"), 3),
        (("--gpu", "CARD:2GB"), 4),
        (("--gpu", "UNHEARDOF"), 2),
        (("--prefer", "beauty"), 2),
        (("--context", "0"), 2),
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
    assert document["asked"] == {"context": 4096, "users": 4, "prefer": "quality"}
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
            "backend_reason", "quality", "bytes_per_token", "max_tokens_per_s", "verified",
            "remarks", "engines", "lost_because",
        }  # fmt: skip
        assert len(entry["memory"]) == 2
        for share in entry["memory"]:
            assert share["total"] == sum(share[key] for key in set(share) - {"total"})
        assert entry["verified"] is False


def test_without_a_choice_the_document_says_why():
    devices = parse_gpus("CARD:2GB")
    planned = plan_variants(gptq_7b(), devices)
    choice = choose(planned)
    document = as_document("repo", devices, planned, choice, "quality")
    assert document["choice"] is None
    assert document["reason"].startswith("nothing fits")
    assert exit_code(choice) == 4
    nothing = plan_variants([], devices)
    assert as_document("repo", devices, nothing, choose(nothing), "quality")["variants"] == []


def test_where_nothing_fits_the_numbers_are_marked_as_predicted(run):
    result = run(published.GPTQ_7B, "--gpu", "CARD:2GB")
    assert result.exit_code == 4
    assert "unverified (predicted, not measured on such a device) of: all." in result.output


def test_what_was_measured_is_not_called_unverified():
    devices = parse_gpus("CARD:24GB")
    main, *others = plan_variants(gptq_7b(), devices).plans
    measured = replace(main, measured=MeasuredMemory(10, 10, "2026-11-01"))
    planned = PlannedVariants((measured, *others), ())
    line = next(
        line
        for line in as_table(devices, planned, choose(planned)).splitlines()
        if "is unverified" in line
    )
    assert "main" not in line
    assert BEST in line


def test_several_gpus_are_shown_one_by_one_with_what_is_not_done_yet():
    devices = parse_gpus("2xA10G:24GB")
    planned = plan_variants(awq_70b(), devices)
    table = as_table(devices, planned, choose(planned))
    assert "device 0:" in table
    assert "device 1:" in table
    assert "pipeline over layers" in table
    assert "the engine runs on one GPU today" in table


def test_names_from_a_hub_cannot_steer_the_terminal():
    evil = replace(gptq_7b()[0], revision="\x1b[2J[bold]x[/bold]\u202e")
    refused = replace(gptq_7b()[1], revision="b\x07", refusal="\x1b]0;owned\x07")
    devices = parse_gpus("CA\x1bRD:24GB")
    planned = plan_variants([evil, refused], devices)
    table = as_table(devices, planned, choose(planned))
    assert "?[2J[bold]x[/bold]?" in table
    assert not {"\x1b", "\x07", "\u202e"} & set(table)


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch):
    devices = parse_gpus("CARD:24GB")
    planned = plan_variants(gptq_7b(), devices)
    monkeypatch.setattr(command_view(), "_WIDTH_OF_FILES", 80)
    table = as_table(devices, planned, choose(planned))
    head = next(line for line in table.splitlines() if "variant" in line)
    assert "kernel" not in head
    assert len(head.rstrip()) <= 80


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
    branch = {**files, "README.md": bytes(MAX_CARD_BYTES + 1)}
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
    assert run(published.GPTQ_7B, "--gpu", "CARD:24GB", "--token", "hf_secret").exit_code == 0
    assert (given["token"], given["local_files_only"]) == ("hf_secret", True)
