import subprocess

import pytest

from loaders.errors import CheckpointError, RevisionNotFoundError
from loaders.git_clone import open_folder
from loaders.spec import parse_spec


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A clone with `main` checked out and a branch of its own content beside it."""
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "--quiet", "--initial-branch=main")
    for branch in ("main", "gptq-8bit-128g-actorder_True"):
        if branch != "main":
            git(origin, "checkout", "--quiet", "-b", branch)
        (origin / "config.json").write_text(f'{{"branch": "{branch}"}}')
        (origin / "model.safetensors").write_bytes(branch.encode() * 500)
        git(origin, "add", ".")
        git(origin, "commit", "--quiet", "-m", branch)
    git(origin, "checkout", "--quiet", "main")
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    return tmp_path / "clone"


def open_spec(text, tmp_path):
    return open_folder(parse_spec(text), cache_dir=tmp_path / "cache")


def test_the_checked_out_branch_is_used_in_place(clone, tmp_path):
    for spec in (str(clone), f"{clone}:main"):
        snapshot = open_spec(spec, tmp_path)
        assert snapshot.folder == clone
        assert snapshot.commit == git(clone, "rev-parse", "HEAD")


def test_another_branch_is_written_out_once_and_the_clone_left_alone(clone, tmp_path):
    before = git(clone, "status", "--porcelain", "--branch")
    first = open_spec(f"{clone}:gptq-8bit-128g-actorder_True", tmp_path)
    assert (
        first.folder / "config.json"
    ).read_text() == '{"branch": "gptq-8bit-128g-actorder_True"}'
    assert (first.folder / "model.safetensors").read_bytes().startswith(b"gptq-8bit")
    assert open_spec(f"{clone}:gptq-8bit-128g-actorder_True", tmp_path) == first
    assert git(clone, "status", "--porcelain", "--branch") == before


def test_a_commit_names_a_revision_too(clone, tmp_path):
    commit = git(clone, "rev-parse", "origin/gptq-8bit-128g-actorder_True")
    assert open_spec(f"{clone}@{commit}", tmp_path).commit == commit


def test_a_missing_branch_names_those_there_are(clone, tmp_path):
    with pytest.raises(RevisionNotFoundError, match=r"it has gptq-8bit-128g-actorder_True, main"):
        open_spec(f"{clone}:nope", tmp_path)


def test_a_revision_that_looks_like_an_option_is_no_option(clone, tmp_path):
    (tmp_path / "cache").mkdir()
    with pytest.raises(RevisionNotFoundError):
        open_spec(f"{clone}:_-output=x", tmp_path)


def test_fetched_large_files_are_linked_and_missing_ones_named(clone, tmp_path):
    oid = "ab" * 32
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 4\n"
    (clone / "model.safetensors").write_text(pointer)
    git(clone, "commit", "--quiet", "-am", "pointer")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_spec(str(clone), tmp_path)
    stored = clone / ".git" / "lfs" / "objects" / "ab" / "ab" / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"data")
    snapshot = open_spec(str(clone), tmp_path)
    assert (snapshot.folder / "model.safetensors").read_bytes() == b"data"


def test_a_plain_folder_is_used_as_it_is(tmp_path):
    (tmp_path / "plain").mkdir()
    assert open_spec(str(tmp_path / "plain"), tmp_path).commit is None


def test_no_program_that_a_clones_settings_name_is_run(clone, tmp_path):
    """A partial clone fetches missing objects, through whatever command its remote names."""
    ran = tmp_path / "ran"
    (clone / "config.json").write_text('{"changed": true}')
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch {ran}; git-upload-pack",
        "core.sshCommand": f"touch {ran}",
        "core.fsmonitor": f"touch {ran}",
    }.items():
        git(clone, "config", key, value)
    blob = git(clone, "rev-parse", "origin/gptq-8bit-128g-actorder_True:model.safetensors")
    for pack in (clone / ".git" / "objects").glob("pack/*"):
        pack.rename(tmp_path / pack.name)
    for pack in tmp_path.glob("pack-*.pack"):
        with pack.open("rb") as file:
            subprocess.run(
                ["git", "-C", str(clone), "unpack-objects", "-q"], stdin=file, check=True
            )
    (clone / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(CheckpointError, match="git"):
        open_spec(f"{clone}:gptq-8bit-128g-actorder_True", tmp_path)
    assert not ran.exists()
