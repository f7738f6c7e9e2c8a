import hashlib
import subprocess

import pytest

from loaders.errors import CheckpointError, RevisionNotFoundError
from loaders.repository.git_clone import large_file_store
from loaders.repository.local import CloneFiles
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec


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
    return open_snapshot(parse_spec(text), cache_dir=tmp_path / "cache")


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


def test_only_the_weights_that_the_settings_name_are_written_out(clone, tmp_path):
    """Other files' contents need not have been fetched."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4\n"
    (clone / "gptq_model-4bit-32g.safetensors").write_text(pointer)
    (clone / "gptq_model-4bit-128g.safetensors").write_bytes(b"these")
    (clone / "model.safetensors").unlink()
    (clone / "quantize_config.json").write_text('{"model_file_base_name": "gptq_model-4bit-128g"}')
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-am", "two quantisations")
    git(clone, "branch", "two")
    assert open_spec(str(clone), tmp_path).folder == clone
    git(clone, "reset", "--quiet", "--hard", "HEAD~")
    folder = open_spec(f"{clone}:two", tmp_path).folder
    assert [path.name for path in folder.glob("*.safetensors")] == [
        "gptq_model-4bit-128g.safetensors"
    ]


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


def point_at(clone, path, content, *, is_fetched):
    """Keep a pointer of git-lfs in a file's place."""
    oid = hashlib.sha256(content).hexdigest()
    size = len(content)
    (clone / path).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
    )
    git(clone, "add", path)
    git(clone, "commit", "--quiet", "-m", "pointer")
    if is_fetched:
        stored = clone / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
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


def test_a_name_of_nothing_is_answered_with_the_files_there_are(gguf_clone, tmp_path):
    for _ in range(2):
        with pytest.raises(RevisionNotFoundError, match=r"Q2_K.*its GGUF files are .*m\.Q4_K_M"):
            open_spec(f"{gguf_clone}:Q2_K", tmp_path)
        if (gguf_clone / ".git").exists():
            (gguf_clone / ".git").rename(tmp_path / "no longer a clone")


def test_of_another_branch_only_the_named_file_is_written_out(gguf_clone, tmp_path):
    snapshot = open_spec(f"{gguf_clone}//@other//large/m.Q8_0.gguf", tmp_path)
    assert files_in(snapshot.folder) == ["large/m.Q8_0.gguf"]
    other = open_spec(f"{gguf_clone}//@other//m.Q4_K_M.gguf", tmp_path)
    assert files_in(other.folder) == ["README.md", "m.Q4_K_M.gguf"]
    assert (other.folder / "m.Q4_K_M.gguf").read_bytes() == b"GGUF4" * 500


@pytest.mark.parametrize("branch", ["main", "other"])
def test_a_file_that_is_not_there_is_answered_with_those_that_are(gguf_clone, tmp_path, branch):
    with pytest.raises(CheckpointError, match=r"its GGUF files are .*did you mean m\.Q4_K_M"):
        open_spec(f"{gguf_clone}//@{branch}//m.Q4_K_S.gguf", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files; name one, as in .*gguf-clone"):
        open_spec(f"{gguf_clone}:other", tmp_path)


def test_the_only_file_of_a_branch_or_folder_is_found_below_its_top(gguf_clone, tmp_path):
    git(gguf_clone, "rm", "--quiet", "m.Q4_K_M.gguf")
    git(gguf_clone, "commit", "--quiet", "-m", "one")
    git(gguf_clone, "branch", "one")
    for name in (gguf_clone, f"{gguf_clone}:one", gguf_clone / "large"):
        snapshot = open_spec(str(name), tmp_path)
        assert (snapshot.folder / (snapshot.file or "m.Q8_0.gguf")).is_file()
    git(gguf_clone, "rm", "--quiet", "-r", "large")
    git(gguf_clone, "commit", "--quiet", "-m", "none")
    snapshot = open_spec(f"{gguf_clone}:one", tmp_path)
    assert snapshot.folder != gguf_clone
    assert snapshot.file == "large/m.Q8_0.gguf"
    assert files_in(snapshot.folder) == [snapshot.file]


@pytest.mark.parametrize("file", ["m.Q4_K_M.gguf", "large/m.Q8_0.gguf"])
def test_large_files_that_are_not_needed_need_not_be_fetched(gguf_clone, tmp_path, file):
    for path in ("m.Q4_K_M.gguf", "large/m.Q8_0.gguf", "tokenizer.json"):
        point_at(gguf_clone, path, f"content of {path}".encode(), is_fetched=path == file)
    snapshot = open_spec(f"{gguf_clone}//{file}", tmp_path)
    assert (snapshot.folder / file).read_text() == f"content of {file}"


def test_neither_need_be_those_that_are_never_read(clone, tmp_path):
    point_at(clone, "pytorch_model.bin", b"pickle", is_fetched=False)
    assert open_spec(str(clone), tmp_path).folder == clone


@pytest.mark.parametrize("name", ["mine.gguf", "@main//mine.gguf"])
def test_a_file_that_was_laid_into_a_clone_is_used_there(gguf_clone, tmp_path, name):
    (gguf_clone / "mine.gguf").write_bytes(b"GGUF")
    assert open_spec(f"{gguf_clone}//{name}", tmp_path).folder == gguf_clone


def test_links_are_no_files_of_a_clone(gguf_clone, tmp_path):
    (gguf_clone / "latest.Q4_K_M.gguf").symlink_to("m.Q4_K_M.gguf")
    git(gguf_clone, "add", ".")
    git(gguf_clone, "commit", "--quiet", "-m", "link")
    assert open_spec(f"{gguf_clone}:Q4_K_M", tmp_path).file == "m.Q4_K_M.gguf"


def test_odd_names_of_files_that_are_not_needed_do_no_harm(clone, tmp_path):
    git(clone, "checkout", "--quiet", "gptq-8bit-128g-actorder_True")
    (clone / "notes").mkdir()
    (clone / "notes" / "a\tb.txt").write_text("")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "odd")
    assert open_spec(str(clone), tmp_path).folder == clone
    git(clone, "checkout", "--quiet", "main")
    snapshot = open_spec(f"{clone}:gptq-8bit-128g-actorder_True", tmp_path)
    assert files_in(snapshot.folder) == ["config.json", "model.safetensors"]


def test_a_clone_of_a_very_long_name_is_written_out_too(clone, tmp_path):
    long = clone.rename(tmp_path / ("c" * 250))
    snapshot = open_spec(f"{long}:gptq-8bit-128g-actorder_True", tmp_path)
    assert (snapshot.folder / "config.json").is_file()


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


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
    found = CloneFiles(clone)
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        found.files(found.find_revision("gptq-8bit-128g-actorder_True"))
    assert not ran.exists()


def test_a_worktree_finds_the_large_files_of_its_clone(clone, tmp_path):
    git(clone, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    assert large_file_store(tmp_path / "tree") == clone / ".git" / "lfs" / "objects"
    assert large_file_store(clone) == clone / ".git" / "lfs" / "objects"
