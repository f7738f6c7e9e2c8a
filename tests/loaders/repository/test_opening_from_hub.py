"""The real hub client against a local server that speaks its API."""

import subprocess
import sys
from pathlib import Path

import pytest

from loaders.cache import BUILT_MARK, repository_folder
from loaders.demo.repository import commit_branch
from tests.hub_server import Fault, HubRepository, running_hub

REPO = "someone/CodeLlama-7B-GPTQ"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# card"}
FETCH = """
import sys
from pathlib import Path
from loaders.errors import LoadError
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
try:
    spec, cache_dir = parse_spec(sys.argv[1]), Path(sys.argv[2])
    snapshot = open_snapshot(
        spec,
        cache_dir=cache_dir,
        local_files_only=len(sys.argv) > 3,
        on_progress=lambda percent: print("percent", percent),
    )
    print(snapshot.commit, *sorted(p.name for p in snapshot.folder.iterdir()))
except LoadError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def hub():
    with running_hub() as running:
        yield running


@pytest.fixture
def fetch(hub, tmp_path):
    """Call `open_snapshot` in a process of its own: the client reads its endpoint at import."""

    def call(spec, *, endpoint=hub.url, offline=False):
        environment = {
            "PATH": "/usr/bin:/bin",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "TETRAD_CACHE_DIR": str(tmp_path / "tetrad"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
        }
        arguments = [spec, str(tmp_path / "cache"), *(["offline"] if offline else [])]
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *arguments],
            env=environment,
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\r") == 0  # no bars in a server's log
        lines = done.stdout.strip().splitlines()
        call.told = [float(line.split()[1]) for line in lines if line.startswith("percent")]
        return lines[-1]

    return call


@pytest.mark.slow
def test_a_branch_is_downloaded_once_and_then_found_offline(hub, fetch):
    files = {**FILES, "pytorch_model.bin": b"pickle", "notes.pdf": b"big"}
    hub.repositories[REPO] = HubRepository({"main": FILES, "other": files})
    commit = hub.repositories[REPO].commit_of("other")
    expected = f"{commit} README.md config.json model.safetensors"
    assert fetch(f"{REPO}:other") == expected
    assert fetch(f"{REPO}:other", offline=True) == expected
    assert fetch(f"{REPO}@{commit}") == expected
    assert fetch(f"{REPO}:other", endpoint="http://127.0.0.1:9") == expected


@pytest.mark.slow
def test_a_download_tells_how_far_it_has_come(hub, fetch):
    weights = bytes(30_000_000)  # read in pieces of 10 MB
    hub.repositories[REPO] = HubRepository({"main": {**FILES, "model.safetensors": weights}})
    fetch(REPO)
    assert fetch.told == sorted(fetch.told)
    assert len(fetch.told) >= 3
    assert fetch.told[-1] > 99
    fetch(REPO, offline=True)
    assert fetch.told == []


@pytest.mark.slow
def test_a_missing_branch_names_those_there_are(hub, fetch):
    hub.repositories[REPO] = HubRepository({"main": FILES, "gptq-4bit-32g-actorder_True": FILES})
    found = fetch(f"{REPO}:nope")
    assert found.startswith("RevisionNotFoundError")
    assert "it has gptq-4bit-32g-actorder_True, main" in found


@pytest.mark.slow
def test_a_repository_of_pickles_is_refused_without_downloading_one(hub, fetch):
    hub.repositories["someone/pickles"] = HubRepository(
        {"main": {"config.json": b"{}", "pytorch_model.bin": b"x"}}
    )
    assert fetch("someone/pickles").startswith("UnsafeCheckpointError")
    assert not [path for path in hub.requests if "pickles/resolve" in path]


@pytest.mark.slow
def test_unknown_and_gated_repositories_say_what_to_do(hub, fetch):
    hub.repositories["someone/gated"] = HubRepository({"main": FILES}, gated=True)
    assert "accept its terms" in fetch("someone/gated")
    assert "check the name, or give a token" in fetch("someone/unknown")


@pytest.mark.slow
def test_what_is_whole_in_the_cache_starts_though_the_hub_refuses_it(hub, fetch):
    hub.repositories[REPO] = HubRepository({"main": FILES, "other": {**FILES, "a.json": b"{}"}})
    expected = fetch(f"{REPO}:main")
    for status in (401, 403, 404):
        hub.faults = [Fault(REPO, times=99, status=status)]
        assert fetch(f"{REPO}:main") == expected
    hub.faults = [Fault(REPO, times=99, status=401)]
    assert "does not know the token" in fetch(f"{REPO}:other")
    hub.faults = []
    hub.repositories[REPO] = HubRepository({"new": FILES})
    assert fetch(f"{REPO}:main") == expected
    assert "it has new" in fetch(f"{REPO}:other")
    hub.repositories.pop(REPO)
    assert fetch(f"{REPO}:main") == expected
    assert "check the name" in fetch(f"{REPO}:other")


@pytest.mark.slow
def test_an_unreachable_hub_and_an_empty_cache_say_so(fetch):
    found = fetch("someone/model", endpoint="http://127.0.0.1:9")
    assert found.startswith("HubError")
    assert "HF_ENDPOINT" in found
    assert "downloads are off" in fetch("someone/model", offline=True)


def build_here(cache_dir, repo=REPO):
    """Lay a repository into a cache as the demo's builder does."""
    (cache_dir / "files").mkdir(parents=True)
    for name, content in FILES.items():
        (cache_dir / "files" / name).write_bytes(content)
    snapshot = commit_branch(cache_dir, repo, "main", cache_dir / "files")
    (repository_folder(cache_dir, repo) / BUILT_MARK).write_text("{}")
    return snapshot.name


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["cache", "tetrad"])
def test_what_was_built_here_is_found_in_the_named_and_in_the_default_cache(
    hub, fetch, tmp_path, cache
):
    commit = build_here(tmp_path / cache)
    hub.repositories.pop(REPO, None)
    requests = len(hub.requests)
    assert fetch(REPO) == f"{commit} README.md config.json model.safetensors"
    assert "built on this machine are main" in fetch(f"{REPO}:nope")
    assert len(hub.requests) == requests


@pytest.mark.slow
def test_a_branch_that_moved_on_the_hub_is_fetched_anew(hub, fetch):
    hub.repositories[REPO] = HubRepository({"main": FILES})
    before = fetch(REPO)
    hub.repositories[REPO] = HubRepository({"main": {**FILES, "README.md": b"# new card"}})
    after = fetch(REPO)
    assert before.split()[0] != after.split()[0]
    assert after.split()[0] == hub.repositories[REPO].commit_of("main")
