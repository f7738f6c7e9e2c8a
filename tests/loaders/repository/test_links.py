"""Links lead only where a cache, a clone or a folder may keep its files; the rest is no file."""

import os
import re
import socket
from pathlib import Path

import pytest
import transformers

from loaders.errors import CheckpointError, UnsafeCheckpointError
from loaders.repository.links import check_files, check_link, is_opened


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret"
    secret.write_text("{}")
    return secret


@pytest.fixture
def plain(tmp_path):
    return fill(tmp_path / "plain")


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone" / ".git" / "lfs" / "objects" / "ab").mkdir(parents=True)
    return fill(tmp_path / "clone")


@pytest.fixture
def snapshot(tmp_path):
    repository = tmp_path / "models--someone--model"
    (repository / "blobs").mkdir(parents=True)
    return fill(repository / "snapshots" / ("0" * 40))


@pytest.fixture(params=["plain", "clone", "snapshot"])
def folder(request):
    return request.getfixturevalue(request.param)


def fill(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def relink(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "generation_config.json", "tokenizer.model",
        "chat_template.jinja", "model.safetensors.index.json", "additional_chat_templates",
    ],
)  # fmt: skip
def test_a_settings_file_linked_from_elsewhere_is_refused_with_link_and_target(
    folder, outside, name
):
    relink(folder / name, outside)
    with pytest.raises(UnsafeCheckpointError, match=f"{name} is a link to {outside}"):
        check_files(folder)
    with pytest.raises(UnsafeCheckpointError, match="leads out of its folder"):
        check_link(folder, name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_only_in_a_plain_folder_weights_may_lie_elsewhere(request, outside, name):
    relink(request.getfixturevalue("plain") / name, outside)
    check_files(request.getfixturevalue("plain"))
    for kind in ("clone", "snapshot"):
        relink(request.getfixturevalue(kind) / name, outside)
        with pytest.raises(UnsafeCheckpointError, match=name):
            check_files(request.getfixturevalue(kind))


def test_links_over_links_are_followed_to_their_end(plain, outside):
    (plain / "b.txt").symlink_to(outside)
    relink(plain / "config.json", "b.txt")
    with pytest.raises(UnsafeCheckpointError, match=r"config\.json is a link to .*secret"):
        check_files(plain)


def test_a_link_to_a_file_of_the_same_folder_is_followed(folder):
    relink(folder / "generation_config.json", "config.json")
    check_files(folder)


def test_a_snapshot_links_to_its_own_blobs_and_to_no_others(snapshot, tmp_path):
    blobs = snapshot.parent.parent / "blobs"
    (blobs / "ab").write_text("{}")
    relink(snapshot / "config.json", "../../blobs/ab")
    check_files(snapshot)
    (tmp_path / "by-another-name").symlink_to(snapshot)
    check_files(tmp_path / "by-another-name")
    other = tmp_path / "models--else--model" / "blobs"
    other.mkdir(parents=True)
    (other / "ab").write_text("{}")
    relink(snapshot / "config.json", other / "ab")
    with pytest.raises(UnsafeCheckpointError, match="models--else--model"):
        check_files(snapshot)


def test_blobs_that_are_themselves_a_link_are_no_store(snapshot, outside):
    blobs = snapshot.parent.parent / "blobs"
    blobs.rmdir()
    blobs.symlink_to(outside.parent)
    relink(snapshot / "config.json", "../../blobs/secret")
    with pytest.raises(UnsafeCheckpointError, match="secret"):
        check_files(snapshot)


def test_a_clone_links_to_its_large_files_and_to_nothing_else_of_git(clone):
    (clone / ".git" / "lfs" / "objects" / "ab" / "x").write_text("{}")
    relink(clone / "tokenizer.json", ".git/lfs/objects/ab/x")
    check_files(clone)
    (clone / ".git" / "config").write_text("{}")
    relink(clone / "tokenizer.json", ".git/config")
    with pytest.raises(UnsafeCheckpointError, match=r"\.git/config"):
        check_files(clone)


def test_what_was_written_out_of_a_clone_links_to_its_large_files(plain, clone):
    store = clone / ".git" / "lfs" / "objects"
    (store / "ab" / "x").write_text("{}")
    relink(plain / "tokenizer.json", store / "ab" / "x")
    check_files(plain, store=store)
    with pytest.raises(UnsafeCheckpointError):
        check_files(plain)


def test_what_nobody_opens_may_lie_anywhere_and_be_anything(folder, outside):
    (folder / "tokenizer.json").write_text("{}")
    for name in ("training.log", "trainer_state.json", "lora.model", "README.md"):
        (folder / name).symlink_to(outside)
    (folder / "notes").symlink_to(outside.parent)
    (folder / "extra.json").symlink_to("gone")
    (folder / "logs.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    with (folder / "old_spm.model").open("wb") as file:
        file.truncate(70_000_000)
    check_files(folder)


def test_any_sentencepiece_file_may_be_the_tokenizer_where_there_is_no_other(plain, outside):
    (plain / "lora.model").symlink_to(outside)
    with pytest.raises(UnsafeCheckpointError, match=r"lora\.model is a link"):
        check_files(plain)
    (plain / "tokenizer.model").write_bytes(b"")
    check_files(plain)


def test_every_vocabulary_that_a_class_of_transformers_opens_is_looked_at(plain):
    models = Path(transformers.__file__).parent / "models"
    sources = [path.read_text() for path in models.glob("*/tokenization_*.py")]
    maps = [
        text for source in sources for text in re.findall(r"VOCAB_FILES_NAMES = {[^}]*}", source)
    ]
    names = {name for text in maps for name in re.findall(r':\s*"([^"]+)"', text)}
    assert {"tokenizer.json", "merges.txt", "spiece.model"} <= names
    assert [name for name in sorted(names) if not is_opened(plain, name)] == []


def test_beside_a_gguf_file_no_settings_are_looked_at(plain, outside):
    (plain / "model.gguf").write_bytes(b"")
    relink(plain / "config.json", outside)
    (plain / "README.md").symlink_to(outside)
    check_files(plain, file="model.gguf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "m.gguf"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, r"a named pipe \(FIFO\)"),
        (os.mkdir, "a folder"),
        (make_socket, "a socket"),
    ],
    ids=["pipe", "folder", "socket"],
)
def test_what_is_no_regular_file_is_refused_by_kind(plain, monkeypatch, name, make, kind):
    (plain / name).unlink(missing_ok=True)
    monkeypatch.chdir(plain)  # a socket's path must be short
    make(name)
    with pytest.raises(CheckpointError, match=f"{name} is {kind}; a regular file was expected"):
        check_files(plain)


def test_a_device_is_refused_also_where_weights_may_lie_elsewhere(plain):
    relink(plain / "model.safetensors", "/dev/zero")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a device"):
        check_files(plain)


@pytest.mark.parametrize(
    ("name", "most"), [("tokenizer_config.json", 4_000_000), ("tokenizer.json", 64_000_000)]
)
def test_files_larger_than_any_of_their_kind_are_refused_unread(plain, name, most):
    with (plain / name).open("wb") as file:
        file.truncate(most)
    check_files(plain)
    with (plain / name).open("wb") as file:
        file.truncate(most + 1)
    with pytest.raises(CheckpointError, match=f"{name} has {most + 1} bytes, at most {most}"):
        check_files(plain)


def test_other_tools_files_may_be_large(plain):
    with (plain / "trainer_state.json").open("wb") as file:
        file.truncate(9_000_000)
    check_files(plain)
