"""What `tetrad mirror --branches auto` chooses: by plan, with a plan's options and records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from loaders.catalogue import find as named_variants
from loaders.records import Records
from loaders.repository import mirror as mirrors
from service.cli import app
from tests.planned import awq_70b, gguf_13b, gptq_7b

REPO = "someone/model"


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """Run the command with variants to choose from; return the specs that would be fetched."""
    monkeypatch.setattr("service.commands.download_options.set_up_logs", lambda _: None)
    monkeypatch.setenv("TETRAD_CACHE_DIR", str(tmp_path / "own"))

    def run(variants, *arguments):
        fetched = []
        monkeypatch.setattr(named_variants, "find_variants", lambda *_, **__: variants)
        monkeypatch.setattr(
            mirrors, "mirror", lambda *_, choose, **__: fetched.extend(choose()) or []
        )
        given = ["mirror", REPO, str(tmp_path / "mirror"), "--branches", "auto", *arguments]
        run.result = CliRunner().invoke(app, given)
        return [(spec.revision, spec.file) for spec in fetched]

    return run


def test_a_file_is_fetched_from_the_branch_that_it_is_on(chosen):
    (variant,) = [v for v in gguf_13b() if v.gguf_type == "Q4_K_M"]
    other = replace(variant, revision="imatrix")
    assert chosen([other], "--gpu", "CARD:24GB") == [("imatrix", variant.file)]


def test_it_takes_a_plans_options(chosen):
    ((best, _),) = chosen(gptq_7b(), "--gpu", "CARD:24GB")
    assert best == "gptq-8bit-128g-actorder_True"
    ((leanest, _),) = chosen(gptq_7b(), "--gpu", "CARD:24GB", "--prefer", "memory")
    assert leanest == "main"  # 4 bits, groups of 128, and no act order to keep
    chosen(gptq_7b(), "--gpu", "CARD:24GB", "--users", "4", "--context", "1024")
    assert "at 1024 tokens x 4 users" in chosen.result.output


def test_what_was_measured_here_decides(chosen, tmp_path):
    for variant in gptq_7b():
        value = 9.0 if variant.revision == "main" else 10.0
        Records(tmp_path / "own").write(variant.commit, "perplexity", value)
    assert chosen(gptq_7b(), "--gpu", "CARD:24GB") == [("main", None)]


def test_what_needs_several_gpus_is_mirrored_and_that_is_said(chosen):
    assert chosen(awq_70b(), "--gpu", "2xA10G:24GB") == [("main", None)]
    assert "runs on one today" in chosen.result.output


def test_where_nothing_fits_or_the_wish_is_nonsense_it_ends_with_2(chosen):
    assert chosen(gptq_7b(), "--gpu", "CARD:1GB") == []
    assert chosen.result.exit_code == 2
    assert "name what to mirror" in chosen.result.output
    assert chosen(gptq_7b(), "--prefer", "beauty") == []
    assert chosen.result.exit_code == 2
    assert "choose one of" in chosen.result.output
