"""The demo's repositories before anything of them is built, and a name that has a branch built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from loaders.catalogue.find import find_variants
from loaders.demo import DEMO_AWQ_REPO, DEMO_REPO, figures, named, places
from loaders.demo.branches import BRANCHES, GPTQ_BRANCHES, WEIGHTS_FILE, default_branch
from loaders.demo.figures import read_figures, recorded_commit_perplexity, write_figures
from loaders.demo.listing import DemoFiles, built_cache, open_demo
from loaders.demo.named import build_named
from loaders.demo.repository import commit_branch
from loaders.demo.stored_header import stored_header
from loaders.errors import RevisionNotFoundError
from loaders.planning.accelerators import Devices
from loaders.planning.plan import choose, plan_variants
from loaders.repository.manifest import sha256_of_file
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_other_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide what the user's own cache holds."""
    monkeypatch.setenv("TETRAD_CACHE_DIR", str(tmp_path / "default"))


def write_branch_into(cache_dir: Path, branch: Any) -> Path:
    """Lay a branch of one short file where a built one would lie."""
    folder = cache_dir.parent / "files"
    folder.mkdir()
    (folder / "config.json").write_text('{"built": true}')
    places.mark_as_built(cache_dir, branch.repo)
    return commit_branch(cache_dir, branch.repo, branch.name, folder)


class TestUnbuilt:
    def test_every_branch_is_listed_with_its_size_and_settings_and_nothing_is_written(
        self, tmp_path
    ):
        found = find_variants(parse_spec(DEMO_REPO), cache_dir=tmp_path / "cache")
        assert [one.revision for one in found] == [branch.name for branch in GPTQ_BRANCHES]
        for variant, branch in zip(found, GPTQ_BRANCHES, strict=True):
            assert (variant.quantization.base.bits, variant.refusal) == (branch.bits, None)
            assert variant.weight_bytes < read_figures().of(branch).num_bytes
            assert variant.disagreements == ()
            assert variant.model_card is not None
        assert not list(tmp_path.iterdir())

    def test_the_awq_repository_is_listed_by_its_own_name(self, tmp_path):
        (found,) = find_variants(parse_spec(DEMO_AWQ_REPO), cache_dir=tmp_path)
        assert (found.kind, found.refusal) == ("awq", None)

    def test_a_plan_chooses_the_default_branch_where_all_fit(self, tmp_path):
        found = find_variants(parse_spec(DEMO_REPO), cache_dir=tmp_path)
        choice = choose(plan_variants(found, Devices("cpu", "cpu", 1, 32_000_000_000)), "quality")
        assert choice.plan.variant.revision == default_branch().name
        assert "perplexity 12.46" in choice.reason

    def test_a_branch_that_the_demo_lacks_is_answered_with_those_it_has(self, tmp_path):
        for look in (
            lambda spec: find_variants(spec, cache_dir=tmp_path),
            lambda spec: build_named(spec, tmp_path, on_progress=lambda *told: None),
        ):
            with pytest.raises(RevisionNotFoundError, match="the demo has main, gptq-4bit-32g"):
                look(parse_spec(f"{DEMO_REPO}:gptq-5bit"))

    def test_other_repositories_and_folders_are_none_of_the_demos(self, tmp_path):
        assert open_demo(parse_spec("owner/name"), tmp_path) is None
        assert open_demo(replace(parse_spec(DEMO_REPO), folder=tmp_path), tmp_path) is None

    def test_a_commit_names_its_branch(self, tmp_path):
        files = DemoFiles(DEMO_REPO, tmp_path)
        commit = read_figures().of(default_branch()).commit
        assert files.find_revision(commit).name == default_branch().name
        assert recorded_commit_perplexity(commit) == 12.4599
        assert recorded_commit_perplexity("0" * 40) is None


class TestBuilt:
    def test_what_is_built_is_read_from_the_cache_and_the_rest_from_the_record(self, tmp_path):
        branch = GPTQ_BRANCHES[1]
        snapshot = write_branch_into(tmp_path / "cache", branch)
        files = DemoFiles(DEMO_REPO, tmp_path / "cache")
        revision = files.find_revision(branch.name)
        assert revision.commit == snapshot.name
        assert files.read(revision, "config.json") == b'{"built": true}'
        main = files.find_revision(None)
        assert b"quantization_config" in files.read(main, "config.json")
        assert len(files.revisions()) == len(GPTQ_BRANCHES)

    def test_a_named_branch_is_built_alone_and_once(self, tmp_path, monkeypatch):
        asked: list[Any] = []
        steps: list[tuple[str, float | None]] = []

        def build(
            cache_dir: Path, branches: Any, *, on_progress: Any, on_percent_done: Any
        ) -> None:
            asked.append((cache_dir, list(branches)))
            on_progress("rounding")
            on_percent_done(50.0)
            write_branch_into(cache_dir, branches[0])

        monkeypatch.setattr(named, "build_demo", build)
        spec = parse_spec(f"{DEMO_REPO}:{GPTQ_BRANCHES[2].name}")
        for _ in range(2):
            found = build_named(spec, tmp_path / "c", on_progress=lambda *told: steps.append(told))
            assert found == tmp_path / "c"
        assert asked == [(tmp_path / "c", [GPTQ_BRANCHES[2]])]
        words = "building the demo: rounding"
        assert steps == [(words, None), (words, 50.0)]

    def test_a_branch_in_the_users_own_cache_is_not_built_again_in_another(self, tmp_path):
        write_branch_into(tmp_path / "default", default_branch())
        spec = parse_spec(str(default_branch()))
        assert built_cache(spec, tmp_path / "other") == tmp_path / "default"

    def test_a_branch_of_another_version_counts_as_not_built(self, tmp_path, monkeypatch):
        write_branch_into(tmp_path / "cache", default_branch())
        monkeypatch.setattr(places, "BUILD", places.BUILD + 1)
        assert built_cache(parse_spec(str(default_branch())), tmp_path / "cache") is None


def test_the_record_is_written_as_it_is_read(tmp_path, monkeypatch):
    known = read_figures()
    monkeypatch.setattr(figures, "RECORD", tmp_path / "figures.json")
    write_figures(replace(known, num_tokens=7))
    assert read_figures() == replace(known, num_tokens=7)
    read_figures.cache_clear()


@pytest.mark.slow
class TestRealBuild:
    @pytest.mark.parametrize("branch", BRANCHES, ids=str)
    def test_a_real_build_is_what_the_record_says(self, demo, branch):
        """After a change run `python -m loaders.demo.record`."""
        folder = places.find_branch(demo.cache_dir, branch)
        weights, recorded = folder / WEIGHTS_FILE, read_figures().of(branch)
        assert weights.stat().st_size == recorded.num_bytes
        assert sha256_of_file(weights) == recorded.sha256
        header = stored_header(read_figures().model_config, branch)
        with weights.open("rb") as file:
            assert file.read(len(header)) == header
        assert folder.name == recorded.commit

    @pytest.mark.parametrize("branch", BRANCHES, ids=str)
    def test_an_unbuilt_branch_is_described_as_a_built_one(self, demo, branch, tmp_path):
        unbuilt = DemoFiles(branch.repo, tmp_path)
        revision = unbuilt.find_revision(branch.name)
        folder = places.find_branch(demo.cache_dir, branch)
        described = [file.path for file in unbuilt.files(revision) if file.path != WEIGHTS_FILE]
        for path in described:
            assert unbuilt.read(revision, path) == (folder / path).read_bytes(), path
