"""The four kinds of repository answer the same questions: hub, cache, folder, git clone."""

import hashlib
import subprocess
import threading

import pytest
import structlog

from loaders.errors import (
    CheckpointError,
    HubError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UnsafeCheckpointError,
)
from loaders.repository.download import RetryPolicy
from loaders.repository.hub import CachedFiles
from loaders.repository.hub.repository import HubFiles
from loaders.repository.local import CloneFiles, FolderFiles
from loaders.repository.opening import open_repository
from loaders.repository.protocol import checked_path, is_revision_name
from loaders.repository.spec import parse_spec
from tests.hub_server import Fault, HubRepository, SparseFile, running_hub
from tests.published import write_cache, write_files

REPO = "someone/CodeLlama-7B-GPTQ"
WEIGHTS = b"0123456789" * 100
FILES = {"config.json": b"{}", "sub/notes.txt": b"words", "model.safetensors": WEIGHTS}
OTHER = {"config.json": b'{"other": 1}', "sub/notes.txt": b"w", "model.safetensors": b"abc"}
HOSTILE = [
    "../outside", "a/../../b", "/etc/passwd", "a\\b", "nul\0byte", "line\nbreak", "\x1b[2Jx",
    "a//b", "", ".", "x" * 5000, "a/" + "b" * 256, "C:/x", "a/./b", "\u202egpj.exe",
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server):
    server.repositories = {
        REPO: HubRepository({"other/branch": OTHER, "main": FILES}, tags={"v1": "main"})
    }
    server.faults, server.tree_page, server.tree_ends = [], 1000, True
    server.redirects_large_files = False
    server.requests.clear()
    return server


def on_hub(hub, repo=REPO, token=None):
    return HubFiles(repo, token=token, endpoint=hub.url)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A clone with `main` checked out, a branch with a slash, and a tag with a message."""
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "--quiet", "--initial-branch=main")
    for branch, files in {"main": FILES, "other/branch": OTHER}.items():
        if branch != "main":
            git(origin, "checkout", "--quiet", "-b", branch)
        write_files(origin, files)
        git(origin, "add", ".")
        git(origin, "commit", "--quiet", "-m", branch)
    git(origin, "checkout", "--quiet", "main")
    git(origin, "tag", "-a", "-m", "words", "v1")
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    return tmp_path / "clone"


@pytest.fixture(params=["hub", "hub that redirects", "cache", "clone"])
def repository(request, tmp_path):
    if request.param.startswith("hub"):
        hub = request.getfixturevalue("hub")
        hub.redirects_large_files = "redirects" in request.param
        return on_hub(hub)
    if request.param == "clone":
        return CloneFiles(request.getfixturevalue("clone"))
    write_cache(tmp_path, REPO, HubRepository({"other/branch": OTHER, "main": FILES, "v1": FILES}))
    return CachedFiles(REPO, tmp_path)


def test_branches_and_tags_are_listed_the_default_one_first(repository):
    revisions = repository.revisions()
    assert revisions[0].name == "main"
    assert {revision.name for revision in revisions} == {"main", "other/branch", "v1"}
    assert repository.find_revision(None) == revisions[0]
    other = repository.find_revision("other/branch")
    assert repository.find_revision(other.commit).commit == other.commit


def test_files_have_sizes_and_are_read_whole_and_in_pieces(repository):
    other = repository.find_revision("other/branch")
    assert {f.path: f.num_bytes for f in repository.files(other)} == {
        path: len(content) for path, content in OTHER.items()
    }
    main = repository.find_revision("main")
    assert repository.read(main, "sub/notes.txt") == b"words"
    assert repository.read(main, "model.safetensors", start=7, num_bytes=6) == b"789012"
    assert repository.read(main, "model.safetensors", start=995, num_bytes=99) == b"56789"
    assert repository.read(main, "model.safetensors", start=1000, num_bytes=9) == b""
    assert repository.read(other, "model.safetensors") == b"abc"


def test_a_missing_revision_names_those_there_are_and_the_likely_one(repository):
    with pytest.raises(RevisionNotFoundError, match=r"has main, other/branch, v1") as raised:
        repository.find_revision("other/brunch")
    if not isinstance(repository, CloneFiles):
        assert "did you mean other/branch?" in str(raised.value)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_could_leave_a_folder_or_upset_a_terminal_is_refused(path):
    with pytest.raises(UnsafeCheckpointError) as raised:
        checked_path(path)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_a_hub_that_lists_such_a_path_is_refused_and_nothing_read(hub):
    hub.repositories[REPO] = HubRepository({"main": {**FILES, "../../outside": b"x"}})
    repository = on_hub(hub)
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        repository.files(repository.find_revision("main"))
    with pytest.raises(UnsafeCheckpointError):
        repository.read(repository.find_revision("main"), "../../etc/passwd")
    assert not [request for request in hub.requests if "resolve" in request]


@pytest.mark.parametrize(
    "name", ["../x", "a..b", "-option", "", "a b", "\x1b[2J", "a\n", "x" * 300]
)
def test_a_branch_that_cannot_be_named_is_left_out(hub, name):
    assert not is_revision_name(name)
    hub.repositories[REPO] = HubRepository({"main": FILES, name: OTHER})
    with structlog.testing.capture_logs() as logs:
        assert [revision.name for revision in on_hub(hub).revisions()] == ["main"]
    assert [entry["event"] for entry in logs] == ["revision_left_out"]


def test_large_files_of_a_hub_come_with_their_sha256_small_ones_with_gits_hash(hub):
    repository = on_hub(hub)
    files = {file.path: file for file in repository.files(repository.find_revision("main"))}
    assert files["model.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["config.json"].sha256 is None
    assert files["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()


def test_a_listing_of_several_pages_is_read_to_its_end(hub):
    many = {f"file-{number}.json": b"{}" for number in range(25)}
    hub.repositories[REPO] = HubRepository({"main": many})
    hub.tree_page = 10
    repository = on_hub(hub)
    assert len(repository.files(repository.find_revision("main"))) == 25


@pytest.mark.parametrize(("page", "found"), [(0, "empty pages"), (1, "does not end")])
def test_a_listing_that_never_ends_is_refused(hub, page, found):
    hub.tree_page, hub.tree_ends = page, False
    repository = on_hub(hub)
    with pytest.raises(HubError, match=found):
        repository.files(repository.find_revision("main"))
    assert len(hub.requests) < 5


def test_a_listing_of_more_pages_than_any_has_is_refused(hub, monkeypatch):
    monkeypatch.setattr("loaders.repository.hub.repository._MAX_PAGES", 2)
    hub.tree_page = 1
    repository = on_hub(hub)
    with pytest.raises(HubError, match="does not end"):
        repository.files(repository.find_revision("main"))


def test_a_piece_of_a_huge_file_costs_that_piece(hub):
    hub.repositories[REPO] = HubRepository({"main": {"big.gguf": SparseFile(b"GGUF", 4 << 30)}})
    repository = on_hub(hub)
    main = repository.find_revision("main")
    before = hub.num_bytes_sent
    assert repository.read(main, "big.gguf", num_bytes=6) == b"GGUF\0\0"
    assert hub.num_bytes_sent - before < 2000
    with pytest.raises(CheckpointError, match="no settings file"):
        repository.read(main, "big.gguf")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("refs", times=2, status=503),
        Fault("refs", times=2, status=500),
        Fault("refs", times=1, status=429, retry_after_s=0),
        Fault("refs", times=2, cut_after=0),
        Fault("refs", times=1, cut_after=30),
    ],
    ids=str,
)
def test_what_fails_for_a_while_is_asked_again(hub, fault, quick_retries):
    hub.faults = [fault]
    assert len(on_hub(hub).revisions()) == 3
    assert fault.times == 0


def test_a_retry_waits_as_long_as_the_hub_asks(hub, monkeypatch):
    monkeypatch.setattr("loaders.repository.hub.repository.RETRY_POLICY", RetryPolicy())
    hub.faults = [Fault("refs", status=429, retry_after_s=1)]
    with structlog.testing.capture_logs() as logs:
        on_hub(hub).revisions()
    assert [entry["wait_s"] for entry in logs] == [1]


@pytest.mark.timeout(20)
def test_a_hub_that_asks_for_a_wait_of_hours_is_not_waited_for(hub):
    hub.faults = [Fault("refs", status=429, retry_after_s=7200)]
    with pytest.raises(HubError, match="must wait 7200 s"):
        on_hub(hub).revisions()


def test_a_hub_that_stays_in_trouble_is_named_with_what_to_do(hub, quick_retries):
    hub.faults = [Fault("refs", times=99, status=503)]
    with pytest.raises(HubError, match=r"status 503.*try again later"):
        on_hub(hub).revisions()
    hub.faults = [Fault("refs", times=99, status=429)]
    with pytest.raises(HubError, match=r"429.*HF_TOKEN.*try again later"):
        on_hub(hub).revisions()
    hub.faults = [Fault("refs", times=99, cut_after=3)]
    with pytest.raises(HubError, match="check the network"):
        on_hub(hub).revisions()


def test_a_private_repository_opens_with_its_token(hub):
    hub.repositories[REPO] = HubRepository({"main": FILES}, token="hf_right")
    for token in (None, "hf_wrong"):
        with pytest.raises(RepositoryNotFoundError, match="give a token"):
            on_hub(hub, token=token).revisions()
    repository = on_hub(hub, token="hf_right")
    assert repository.read(repository.find_revision("main"), "config.json") == b"{}"


def test_a_gated_repository_says_where_its_terms_are(hub):
    hub.repositories[REPO] = HubRepository({"main": FILES}, gated=True)
    with pytest.raises(RepositoryNotFoundError, match=f"accept its terms at {hub.url}/{REPO}"):
        on_hub(hub).revisions()


def test_a_wrong_name_suggests_the_near_ones(hub):
    with pytest.raises(RepositoryNotFoundError, match=f"did you mean {REPO}"):
        on_hub(hub, "someone/CodeLama-7B-GPTQ").revisions()
    with pytest.raises(RepositoryNotFoundError, match=f"did you mean {REPO}"):
        on_hub(hub, "somebody/CodeLlama-7B-GPTQ").revisions()
    with pytest.raises(RepositoryNotFoundError, match=r"\(HF_TOKEN\)$"):
        on_hub(hub, "nobody/nothing").revisions()


def test_a_mirror_that_only_says_404_is_understood(hub):
    hub.faults = [Fault("refs", times=9, status=404)]
    with pytest.raises(RepositoryNotFoundError, match="check the name"):
        on_hub(hub).revisions()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_the_token_lacks(hub, status):
    hub.faults = [Fault("config.json", times=9, status=status)]
    repository = on_hub(hub)
    with pytest.raises(RepositoryNotFoundError, match="token"):
        repository.read(repository.find_revision("main"), "config.json")


def test_an_address_that_is_no_hub_says_so(quick_retries):
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        HubFiles(REPO, endpoint="http://127.0.0.1:9").revisions()


def test_many_threads_read_at_once(hub):
    repository = on_hub(hub)
    main = repository.find_revision("main")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(repository.read(main, "model.safetensors")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WEIGHTS] * 16


def test_a_cache_knows_hashes_by_its_links_and_reads_nothing_outside(tmp_path):
    write_cache(tmp_path, REPO, HubRepository({"main": FILES}))
    root = tmp_path / "models--someone--CodeLlama-7B-GPTQ"
    repository = CachedFiles(REPO, tmp_path)
    main = repository.find_revision(None)
    snapshot = root / "snapshots" / main.commit
    blob = root / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    (tmp_path / "secret").write_text("secret")
    (snapshot / "leak.json").symlink_to(tmp_path / "secret")
    files = {file.path: file for file in repository.files(main)}
    assert files["model.safetensors"].sha256 == blob.name
    assert repository.read(main, "model.safetensors", num_bytes=3) == b"012"
    with pytest.raises(UnsafeCheckpointError, match="leads out of"):
        repository.read(main, "leak.json")


def test_a_commit_that_was_fetched_without_a_branch_is_found_in_the_cache(tmp_path):
    write_cache(tmp_path, REPO, HubRepository({"main": FILES}))
    (tmp_path / "models--someone--CodeLlama-7B-GPTQ" / "refs" / "main").unlink()
    repository = CachedFiles(REPO, tmp_path)
    (revision,) = repository.revisions()
    assert (revision.kind, revision.name) == ("commit", revision.commit)
    assert repository.find_revision(None) == revision
    assert repository.read(revision, "config.json") == b"{}"


def test_a_plain_folder_is_one_state_without_a_name(tmp_path):
    write_files(tmp_path / "plain", {**FILES, ".git-ignored/x": b""})
    repository = FolderFiles(tmp_path / "plain")
    (revision,) = repository.revisions()
    assert (revision.name, revision.kind, revision.commit) == (None, "folder", None)
    assert {file.path for file in repository.files(revision)} == set(FILES)
    assert repository.read(revision, "model.safetensors", start=3, num_bytes=2) == b"34"
    with pytest.raises(CheckpointError, match="cannot read"):
        repository.read(revision, "missing.json")
    with pytest.raises(RevisionNotFoundError, match="plain folder"):
        repository.find_revision("main")


def test_a_clones_large_file_that_was_not_fetched_is_known_by_its_pointer(clone):
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 1000\n"
    (clone / "model.safetensors").write_text(pointer)
    git(clone, "commit", "--quiet", "-am", "pointer")
    repository = CloneFiles(clone)
    main = repository.find_revision(None)
    file = next(f for f in repository.files(main) if f.path == "model.safetensors")
    assert (file.num_bytes, file.sha256) == (1000, sha256)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        repository.read(main, "model.safetensors", num_bytes=8)
    stored = clone / ".git" / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256
    stored.parent.mkdir(parents=True)
    stored.write_bytes(WEIGHTS)
    assert repository.read(main, "model.safetensors", num_bytes=4) == b"0123"


def test_a_clone_is_left_as_it_was(clone):
    before = git(clone, "status", "--porcelain", "--branch")
    repository = CloneFiles(clone)
    for revision in repository.revisions():
        repository.read(revision, "config.json")
    assert git(clone, "status", "--porcelain", "--branch") == before
    assert git(clone, "worktree", "list").count("\n") == 0


def test_an_unreachable_hub_is_replaced_by_its_cache_with_a_warning(
    tmp_path, monkeypatch, quick_retries
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        open_repository(parse_spec(REPO), cache_dir=tmp_path)
    write_cache(tmp_path, REPO, HubRepository({"main": FILES}))
    with structlog.testing.capture_logs() as logs:
        opened = open_repository(parse_spec(REPO), cache_dir=tmp_path)
    assert isinstance(opened, CachedFiles)
    assert logs[0]["event"] == "hub_unreachable"


def test_downloads_off_means_the_cache_or_nothing(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    with pytest.raises(RepositoryNotFoundError, match="downloads are off"):
        open_repository(parse_spec(REPO), cache_dir=tmp_path, local_files_only=True)
    assert isinstance(open_repository(parse_spec(REPO), cache_dir=tmp_path), HubFiles)
    write_files(tmp_path / "plain", FILES)
    plain = open_repository(parse_spec(str(tmp_path / "plain")), local_files_only=True)
    assert isinstance(plain, FolderFiles)
