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


@pytest.fixture
def gguf_clone(tmp_path):
    """Two GGUF files, one of them in a folder of its own; `other` is a commit behind."""
    origin = tmp_path / "gguf-origin"
    (origin / "large").mkdir(parents=True)
    git(origin, "init", "--quiet", "--initial-branch=main")
    (origin / "README.md").write_text("# Files")
    (origin / "m.Q4_K_M.gguf").write_bytes(b"GGUF4" * 500)
    (origin / "large" / "m.Q8_0.gguf").write_bytes(b"GGUF8" * 500)
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "files")
    git(origin, "branch", "other")
    (origin / "README.md").write_text("# Files of today")
    git(origin, "commit", "--quiet", "-am", "today")
    git(tmp_path, "clone", "--quiet", str(origin), "gguf-clone")
    return tmp_path / "gguf-clone"


def pull_none_but(clone, path, content):
    """Let git-lfs have fetched a single one of the files."""
    for other in ("m.Q4_K_M.gguf", "large/m.Q8_0.gguf"):
        oid = ("ab" if other == path else "cd") * 32
        size = len(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
        (clone / other).write_text(pointer)
    git(clone, "commit", "--quiet", "-am", "pointers")
    stored = clone / ".git" / "lfs" / "objects" / "ab" / "ab" / ("ab" * 32)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(content)


@pytest.mark.parametrize(
    ("wanted", "file"),
    [("Q4_K_M", "m.Q4_K_M.gguf"), ("q8_0", "large/m.Q8_0.gguf")],
)
def test_a_quantisation_names_a_file_of_a_clone_or_folder(gguf_clone, tmp_path, wanted, file):
    snapshot = open_spec(f"{gguf_clone}:{wanted}", tmp_path)
    assert (snapshot.folder, snapshot.file) == (gguf_clone, file)
    assert snapshot.commit == git(gguf_clone, "rev-parse", "HEAD")
    (gguf_clone / ".git").rename(tmp_path / "no longer a clone")
    snapshot = open_spec(f"{gguf_clone}:{wanted}", tmp_path)
    assert (snapshot.folder, snapshot.file, snapshot.commit) == (gguf_clone, file, None)
    with pytest.raises(RevisionNotFoundError, match="Q2_K"):
        open_spec(f"{gguf_clone}:Q2_K", tmp_path)


def test_of_another_branch_only_the_named_file_is_written_out(gguf_clone, tmp_path):
    snapshot = open_spec(f"{gguf_clone}//@other//large/m.Q8_0.gguf", tmp_path)
    assert (snapshot.folder / "large" / "m.Q8_0.gguf").read_bytes() == b"GGUF8" * 500
    assert (snapshot.folder / "README.md").is_file()
    assert not (snapshot.folder / "m.Q4_K_M.gguf").exists()
    other = open_spec(f"{gguf_clone}//@other//m.Q4_K_M.gguf", tmp_path)
    assert (other.folder / "m.Q4_K_M.gguf").read_bytes() == b"GGUF4" * 500
    with pytest.raises(CheckpointError, match=r"its GGUF files are .*Q4_K_M"):
        open_spec(f"{gguf_clone}//@other//m.Q2_K.gguf", tmp_path)


@pytest.mark.parametrize("file", ["m.Q4_K_M.gguf", "large/m.Q8_0.gguf"])
def test_large_files_that_are_not_needed_need_not_be_fetched(gguf_clone, tmp_path, file):
    pull_none_but(gguf_clone, file, b"fetched")
    snapshot = open_spec(f"{gguf_clone}//{file}", tmp_path)
    assert (snapshot.folder / file).read_bytes() == b"fetched"


def test_a_file_that_was_laid_into_a_clone_is_used_there(gguf_clone, tmp_path):
    (gguf_clone / "mine.gguf").write_bytes(b"GGUF")
    assert open_spec(f"{gguf_clone}/mine.gguf", tmp_path).folder == gguf_clone


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
