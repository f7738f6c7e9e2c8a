"""Downloads and mirrors through the real hub client, from a local server that speaks its API."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loaders.checkpoint.weight_files import INDEX_FILE
from loaders.errors import CheckpointError
from loaders.load import load
from tests import models
from tests.hub_server import Fault, HubRepository, running_hub, sha256_of
from tests.watching import partial_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hub_server import Hub

pytestmark = pytest.mark.slow

REPO = "someone/CodeLlama-7B-GPTQ"
SMALL = {"config.json": b"{}", "README.md": b"# card", "LICENSE": b"free"}
WEIGHTS = os.urandom(3_000_000)
FILES = {**SMALL, "model.safetensors": WEIGHTS}
ROOT = Path(__file__).parents[4]
# Every line of input is one call; answers are JSON. One process makes many calls, since importing
# the hub's client takes a second.
CALLS = """
import json, sys
from pathlib import Path
from loaders.repository import hub
from loaders.repository.opening import open_snapshot
from loaders.repository.cache_layout import free_disk_bytes
from loaders.repository.download import RetryPolicy
from loaders.errors import LoadError
from loaders.repository.mirror import check_mirror, mirror
from loaders.repository.spec import parse_spec

def answer(call):
    cache_dir, told, waited = Path(call["cache_dir"]), [], []
    access = hub.HubAccess(
        cache_dir=cache_dir,
        token=call.get("token"),
        retry_policy=RetryPolicy(max_tries=3, first_wait_s=0.01, longest_wait_s=0.02),
        on_progress=lambda progress: told.append(progress.num_bytes_done),
        on_wait=lambda: waited.append(True),
        free=lambda folder: call.get("free") or free_disk_bytes(folder),
    )
    try:
        if call["do"] == "mirror":
            held = mirror(call["repo"], call["branches"], access)
            return {"mirrored": {variant.spec: sorted(variant.files) for variant in held}}
        if call["do"] == "check":
            return {"damage": [str(entry) for entry in check_mirror(cache_dir)]}
        spec = parse_spec(call["spec"])
        if call["do"].startswith("offline"):
            snapshot = open_snapshot(spec, cache_dir=cache_dir, local_files_only=True)
            if call["do"] == "offline-unchecked":
                return {"folder": str(snapshot.folder)}
        else:
            snapshot = hub.download(spec, access)
        names = sorted(str(p.relative_to(snapshot.folder)) for p in snapshot.folder.rglob("*"))
        damage = [str(entry) for entry in hub.verify(snapshot)]
        return {"commit": snapshot.commit, "files": names, "file": snapshot.file,
                "folder": str(snapshot.folder), "told": told, "waited": bool(waited),
                "damage": damage}
    except LoadError as error:
        return {"error": type(error).__name__, "message": str(error)}

for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=sys.__stdout__, flush=True)
"""


class Client:
    """A process with the hub's client in it."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "TETRAD_CACHE_DIR": str(home / "tetrad"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import structlog, sys; structlog.configure("
             f"logger_factory=structlog.PrintLoggerFactory(sys.stderr))\n{CALLS}"],
            env=self.environment, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def begin(self, do: str, cache_dir: Path, **call: object) -> None:
        assert self.process.stdin is not None
        line = json.dumps({"do": do, "cache_dir": str(cache_dir), **call})
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> dict:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, do: str, cache_dir: Path, **call: object) -> dict:
        self.begin(do, cache_dir, **call)
        return self.end()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server) -> Hub:
    """The server as new."""
    server.repositories = {REPO: HubRepository({"main": FILES})}
    server.requests.clear()
    server.asked.clear()
    server.faults.clear()
    server.redirects_large_files, server.knows_ranges, server.pause_s = True, True, 0.0
    server.num_bytes_sent = 0
    return server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Iterator[Client]:
    running = Client(server, tmp_path_factory.mktemp("home"))
    with contextlib.closing(running):
        yield running


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def starts_asked(hub, content=WEIGHTS):
    """Where the requests for a large file's bytes began."""
    path = f"/stored/{sha256_of(content)}"
    return [request.range[0] if request.range else 0 for request in hub.asked
            if request.path == path]  # fmt: skip


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_the_needed_files_come(hub, client, cache):
    extra = {"pytorch_model.bin": b"pickle", "notes.pdf": b"x", "modeling.py": b"x",
             "onnx/model.safetensors": b"x"}  # fmt: skip
    hub.repositories[REPO] = HubRepository({"main": {**FILES, **extra}})
    found = client("download", cache, spec=REPO)
    assert found["files"] == sorted(FILES)
    assert found["damage"] == []
    asked = [request.split("/")[-1] for request in hub.requests if "/resolve/" in request]
    assert sorted(asked) == sorted(FILES)


def test_the_shards_of_the_index_come_and_no_others(hub, client, cache):
    shards = {f"model-0000{n}-of-00002.safetensors": b"%d" % n for n in (1, 2)}
    index = json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}).encode()
    files = {**SMALL, **shards, INDEX_FILE: index}
    hub.repositories[REPO] = HubRepository({"main": {**files, "other.safetensors": b"no"}})
    assert client("download", cache, spec=REPO)["files"] == sorted(files)
    assert client("offline", cache, spec=REPO)["files"] == sorted(files)


def test_a_large_index_is_read_from_the_cache_as_from_the_hub(hub, client, cache):
    index = json.dumps({"weight_map": {"a": "one.safetensors"}}).encode() + b" " * 5_000_000
    hub.repositories[REPO] = HubRepository(
        {"main": {**SMALL, "one.safetensors": b"1", INDEX_FILE: index}}
    )
    first = client("download", cache, spec=REPO)
    assert client("download", cache, spec=REPO)["files"] == first["files"]


def test_the_file_that_the_settings_name_comes_and_no_other(hub, client, cache):
    named = {"gptq_model-4bit-128g.safetensors": b"this", "gptq_model-4bit-32g.safetensors": b"no"}
    settings = json.dumps({"model_file_base_name": "gptq_model-4bit-128g"}).encode()
    files = {**SMALL, "quantize_config.json": settings, **named}
    hub.repositories[REPO] = HubRepository({"main": files})
    expected = sorted(files.keys() - {"gptq_model-4bit-32g.safetensors"})
    assert client("download", cache, spec=REPO)["files"] == expected
    assert client("offline", cache, spec=REPO)["files"] == expected


def test_a_left_over_index_brings_no_shards(hub, client, cache):
    index = json.dumps({"weight_map": {"t": "model-00001-of-00001.safetensors"}}).encode()
    files = {**FILES, INDEX_FILE: index}
    hub.repositories[REPO] = HubRepository({"main": files})
    assert client("download", cache, spec=REPO)["files"] == sorted(files)
    assert client("offline", cache, spec=REPO)["files"] == sorted(files)


def test_a_gguf_file_is_named_by_itself_or_by_its_quantisation(hub, client, cache):
    parts = {"m.Q8_0.gguf-split-a": b"first", "m.Q8_0.gguf-split-b": b"second"}
    files = {"config.json": b"{}", "m.Q4_K_M.gguf": b"q4", **parts}
    hub.repositories[REPO] = HubRepository({"main": files})
    assert client("download", cache, spec=f"{REPO}:Q4_K_M")["file"] == "m.Q4_K_M.gguf"
    assert "main" in client("offline", cache, spec=f"{REPO}:Q8_0")["message"]
    found = client("download", cache, spec=f"{REPO}/m.Q8_0.gguf")
    assert found["file"] == "m.Q8_0.gguf-split-a"
    assert found["files"] == sorted(files)
    for spec in (f"{REPO}:Q8_0", f"{REPO}/m.Q8_0.gguf-split-a"):
        assert client("offline", cache, spec=spec)["file"] == "m.Q8_0.gguf-split-a"
    unnamed = client("download", cache, spec=REPO)
    assert "m.Q4_K_M.gguf, m.Q8_0.gguf" in unnamed["message"]
    unknown = client("download", cache, spec=f"{REPO}:Q5_K_M")
    assert "it has main" in unknown["message"]
    assert "its GGUF files are m.Q4_K_M.gguf, m.Q8_0.gguf" in unknown["message"]


def test_a_killed_download_goes_on_where_it_stopped(hub, client, cache, tmp_path):
    hub.pause_s = 0.05
    with contextlib.closing(Client(hub, tmp_path)) as killed:
        killed.begin("download", cache, spec=REPO)
        wait_for(lambda: partial_bytes(cache) >= 500_000)
        killed.process.send_signal(signal.SIGKILL)
    assert not list(cache.rglob("snapshots/*"))
    kept = partial_bytes(cache)
    assert kept < len(WEIGHTS)
    hub.pause_s = 0.0
    hub.asked.clear()
    found = client("download", cache, spec=REPO)
    assert found["damage"] == []
    assert starts_asked(hub) == [kept]
    assert not list(cache.rglob("*.partial"))


def test_a_server_without_ranges_sends_the_file_anew(hub, client, cache):
    hub.knows_ranges = False
    hub.faults = [Fault("/stored/", cut_after=1_000_000)]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert starts_asked(hub) == [0, 1_000_000]


def test_a_connection_cut_twice_goes_on_where_it_broke(hub, client, cache):
    hub.faults = [Fault("/stored/", times=2, cut_after=1_000_000)]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert starts_asked(hub) == [0, 1_000_000, 2_000_000]


def test_an_answer_that_ends_early_is_completed(hub, client, cache):
    hub.faults = [Fault("/stored/", ends_after=700_000)]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert starts_asked(hub) == [0, 700_000]


def test_a_file_damaged_once_is_fetched_again(hub, client, cache):
    hub.faults = [Fault("/stored/", damages=True)]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert starts_asked(hub) == [0, 0]


def test_a_file_always_damaged_is_reported_and_not_kept(hub, client, cache):
    hub.faults = [Fault("/stored/", times=9, damages=True)]
    found = client("download", cache, spec=REPO)
    assert found["error"] == "CheckpointError"
    assert f"expected 3000000 bytes with sha256 {sha256_of(WEIGHTS)}, found" in found["message"]
    assert starts_asked(hub) == [0, 0]
    assert not list(cache.rglob("snapshots/*"))
    assert not list(cache.rglob("refs/*"))


@pytest.mark.parametrize("path", ["/api/models/", "/resolve/", "/stored/"])
@pytest.mark.parametrize("fault", [{"status": 429, "retry_after_s": 1}, {"status": 503}])
def test_a_busy_hub_is_asked_again(hub, client, cache, path, fault):
    hub.faults = [Fault(path, **fault)]
    started = time.monotonic()
    assert client("download", cache, spec=REPO)["damage"] == []
    assert hub.faults[0].times == 0
    if fault["status"] == 429:
        assert time.monotonic() - started >= 1


def test_a_hub_that_stays_busy_is_given_up(hub, client, cache):
    hub.faults = [Fault("/stored/", times=99, status=503)]
    found = client("download", cache, spec=REPO)
    assert found["error"] == "HubError"
    assert "model.safetensors failed 3 times in a row (status 503" in found["message"]


def test_gated_private_and_unknown_repositories_say_what_to_do(hub, client, cache):
    hub.repositories["a/gated"] = HubRepository({"main": FILES}, gated=True)
    hub.repositories["a/private"] = HubRepository({"main": FILES}, token="hf_secret")
    assert "accept its terms" in client("download", cache, spec="a/gated")["message"]
    for refused in (
        client("download", cache, spec="a/private"),
        client("download", cache, spec="a/private", token="hf_wrong"),
        client("download", cache, spec="a/unknown"),
    ):
        assert refused["error"] == "RepositoryNotFoundError"
        assert "give a token (HF_TOKEN)" in refused["message"]
        assert "hf_" not in refused["message"]
    assert client("download", cache, spec="a/private", token="hf_secret")["damage"] == []
    misspelt = client("download", cache, spec="someone/CodeLama-7B-GPTQ")
    assert f"did you mean {REPO}?" in misspelt["message"]


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub, client, cache):
    hub.repositories["a/private"] = HubRepository({"main": FILES}, token="hf_secret")
    client("download", cache, spec="a/private", token="hf_secret")
    assert {request.token for request in hub.asked if "/stored/" not in request.path} == {
        "hf_secret"
    }
    (stored,) = [request for request in hub.asked if "/stored/" in request.path]
    assert stored.host.startswith("localhost")
    assert stored.token is None


def test_a_missing_branch_names_the_one_that_was_meant(hub, client, cache):
    branches = dict.fromkeys(["main", "gptq-4bit-32g-actorder_True"], FILES)
    hub.repositories[REPO] = HubRepository(branches)
    found = client("download", cache, spec=f"{REPO}:gptq-4bit-32g-actorder_true")
    assert found["error"] == "RevisionNotFoundError"
    assert "did you mean gptq-4bit-32g-actorder_True?" in found["message"]


def test_two_processes_at_once_fetch_every_byte_once(hub, client, cache, tmp_path):
    hub.pause_s = 0.02
    with contextlib.closing(Client(hub, tmp_path)) as other:
        other.begin("download", cache, spec=REPO)
        wait_for(lambda: partial_bytes(cache) > 0)
        second = client("download", cache, spec=REPO)
        first = other.end()
    assert second["waited"]
    assert not first["waited"]
    assert first["files"] == second["files"] == sorted(FILES)
    assert starts_asked(hub) == [0]
    assert len([r for r in hub.requests if "/resolve/" in r]) == len(FILES)


def test_a_disk_too_small_is_told_before_the_first_byte(hub, client, cache):
    found = client("download", cache, spec=REPO, free=1_000_000)
    assert found["error"] == "CacheError"
    assert f"needs {sum(map(len, FILES.values()))} bytes more" in found["message"]
    assert "1000000 bytes free" in found["message"]
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_disk_that_fills_up_leaves_nothing_half_named(hub, client, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        found = client("download", small, spec=REPO, free=10**9)
        assert found["error"] == "CacheError"
        assert "is full; free some space" in found["message"]
        assert not list(small.rglob("snapshots/*"))
        assert 0 < partial_bytes(small) < len(WEIGHTS)
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        assert client("download", small, spec=REPO)["damage"] == []
        assert starts_asked(hub)[-1] > 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("name", ["../../../stolen.json", "/stolen.json", "a\\..\\stolen.json"])
def test_a_file_that_would_leave_the_cache_is_refused(hub, client, cache, name):
    hub.repositories[REPO] = HubRepository({"main": {**FILES, name: b"stolen"}})
    found = client("download", cache, spec=REPO)
    assert found["error"] == "UnsafeCheckpointError"
    assert "stolen.json" in found["message"]
    assert not cache.exists()


def test_offline_the_client_and_transformers_find_what_was_downloaded(hub, client, cache):
    config = json.dumps({"model_type": "llama", "hidden_size": 64}).encode()
    hub.repositories[REPO] = HubRepository({"other/branch": {**FILES, "config.json": config}})
    commit = client("download", cache, spec=f"{REPO}:other/branch")["commit"]
    hub.requests.clear()
    assert client("offline", cache, spec=f"{REPO}@{commit[:10]}")["commit"] == commit
    script = (
        "import sys; from huggingface_hub import snapshot_download\n"
        "from transformers import AutoConfig\n"
        "where = {'revision': 'other/branch', 'cache_dir': sys.argv[2]}\n"
        "print(snapshot_download(sys.argv[1], **where))\n"
        "print(AutoConfig.from_pretrained(sys.argv[1], **where).hidden_size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, REPO, str(cache)],
        env={**client.environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, hidden_size = done.stdout.splitlines()
    assert folder.endswith(f"snapshots/{commit}")
    assert hidden_size == "64"
    assert hub.requests == []


def test_what_the_hubs_client_fetched_is_checked_and_not_fetched_again(hub, client, cache):
    script = (
        "import sys; from huggingface_hub import snapshot_download\n"
        "snapshot_download(sys.argv[1], cache_dir=sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", script, REPO, str(cache)],
        env={**client.environment, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    folder = Path(client("offline-unchecked", cache, spec=REPO)["folder"])
    hub.requests.clear()
    found = client("download", cache, spec=REPO)
    assert found["damage"] == []
    assert found["folder"] == str(folder)
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_signed_address_that_expired_is_asked_for_anew(hub, client, cache):
    hub.faults = [Fault("/stored/", status=403)]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert len([r for r in hub.requests if r.endswith("/model.safetensors")]) == 2


def test_a_snapshot_that_lacks_a_file_is_not_used_offline(hub, client, cache):
    folder = Path(client("download", cache, spec=REPO)["folder"])
    (folder / "model.safetensors").resolve().unlink()
    assert "not with all files" in client("offline", cache, spec=REPO)["message"]
    assert client("download", cache, spec=REPO)["damage"] == []
    assert starts_asked(hub) == [0, 0]


def test_a_mirror_is_checked_and_served_without_the_hub(hub, client, cache, tmp_path):
    other = {**FILES, "model.safetensors": b"other weights"}
    hub.repositories[REPO] = HubRepository({"main": FILES, "b": other, "not-asked-for": FILES})
    first = client("mirror", cache, repo=REPO, branches=["main"])
    assert first["mirrored"] == {f"{REPO}:main": sorted(FILES)}
    both = client("mirror", cache, repo=REPO, branches=["b"])
    assert list(both["mirrored"]) == [f"{REPO}:main", f"{REPO}:b"]
    moved = cache.rename(tmp_path / "carried")
    hub.requests.clear()
    assert client("check", moved)["damage"] == []
    for branch in ("main", "b"):
        assert client("offline", moved, spec=f"{REPO}:{branch}")["files"] == sorted(FILES)
    assert client("offline", moved, spec=f"{REPO}:not-asked-for")["error"] == (
        "RevisionNotFoundError"
    )
    assert hub.requests == []
    listed = json.loads((moved / "tetrad-mirror.json").read_text())
    assert listed["variants"][0]["endpoint"] == hub.url
    assert listed["variants"][0]["files"]["model.safetensors"] == {
        "num_bytes": len(WEIGHTS), "sha256": sha256_of(WEIGHTS)
    }  # fmt: skip


def test_gguf_files_of_one_commit_are_mirrored_one_by_one(hub, client, cache):
    files = {"README.md": b"#", "m.Q2_K.gguf": b"q2", "m.Q4_K_M.gguf": b"q4", "m.Q8_0.gguf": b"q8"}
    hub.repositories[REPO] = HubRepository({"main": files})
    held = client("mirror", cache, repo=REPO, branches=["Q4_K_M", "m.Q2_K.gguf"])["mirrored"]
    assert list(held) == [f"{REPO}:Q4_K_M", f"{REPO}/m.Q2_K.gguf"]
    assert client("check", cache)["damage"] == []
    assert client("offline", cache, spec=f"{REPO}:Q4_K_M")["file"] == "m.Q4_K_M.gguf"
    assert client("offline", cache, spec=f"{REPO}:Q2_K")["file"] == "m.Q2_K.gguf"
    assert "error" in client("offline", cache, spec=f"{REPO}:Q8_0")


def test_damage_to_a_mirror_is_found(hub, client, cache):
    client("mirror", cache, repo=REPO, branches=["main"])
    (link,) = cache.rglob("model.safetensors")
    link.resolve().write_bytes(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
    (found,) = client("check", cache)["damage"]
    assert "model.safetensors: expected 3000000 bytes with sha256" in found
    (config,) = cache.rglob("config.json")
    config.unlink()
    config.symlink_to("/etc/hostname")
    (ref,) = cache.rglob("refs/main")
    ref.write_text("0" * 40)
    damage = client("check", cache)["damage"]
    assert len(damage) == 3
    assert any("a link out of it" in entry for entry in damage)
    assert any(f"found commit {'0' * 40}" in entry for entry in damage)
    (cache / "tetrad-mirror.json").write_text("{")
    assert "cannot be read" in client("check", cache)["message"]
    assert "is no mirror" in client("check", cache / "nowhere")["message"]


def test_a_variant_loads_from_a_mirror_with_the_network_off(hub, client, cache, tmp_path):
    written = models.write_gptq_checkpoint(
        tmp_path, models.tiny_llama(), bits=4, group_size=128, tokenizer=models.tiny_tokenizer()
    )
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    hub.repositories[REPO] = HubRepository({"main": {}, "gptq-4bit-128g-actorder_False": files})
    spec = f"{REPO}:gptq-4bit-128g-actorder_False"
    client("mirror", cache, repo=REPO, branches=["gptq-4bit-128g-actorder_False"])
    hub.repositories.clear()
    hub.requests.clear()
    loaded = load(spec, cache_dir=cache, local_files_only=True, device="cpu")
    assert loaded.provenance.folder.is_relative_to(cache)
    assert str(loaded.quantization) == "gptq 4-bit group 128"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("do", "name"), [("download", "model.safetensors"), ("mirror", "tokenizer.json")]
)
def test_a_flipped_byte_is_named_when_it_is_loaded_and_mended_as_it_says(
    hub, client, cache, tmp_path, do, name
):
    written = models.write_gptq_checkpoint(
        tmp_path, models.tiny_llama(), bits=4, group_size=128, tokenizer=models.tiny_tokenizer()
    )
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    hub.repositories[REPO] = HubRepository({"main": files})
    where = {"repo": REPO, "branches": ["main"]} if do == "mirror" else {"spec": REPO}
    client(do, cache, **where)
    load(REPO, cache_dir=cache, local_files_only=True, device="cpu")
    (link,) = cache.rglob(name)
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    link.resolve().write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: sha256") as caught:
        load(REPO, cache_dir=cache, local_files_only=True, device="cpu")
    command = re.search(r"`(.*)`", str(caught.value))
    assert command is not None
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.real_server", *command[1].split()[1:]],
        env={**os.environ, **client.environment}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert f"damaged: {name}" in done.stderr, done.stderr
    assert done.returncode == 0
    load(REPO, cache_dir=cache, local_files_only=True, device="cpu")
