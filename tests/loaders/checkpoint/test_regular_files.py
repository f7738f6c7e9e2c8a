import os

import pytest

from loaders.checkpoint.config import read_config
from loaders.checkpoint.files import read_checkpoint, read_json
from loaders.checkpoint.regular_files import open_regular, read_regular
from loaders.errors import CheckpointError


def test_a_regular_file_is_read_whole_also_over_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b", most=3) == b"abc"
    with open_regular(tmp_path / "a") as file:
        assert file.read(1) == b"a"


def test_a_file_with_more_than_is_wanted_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"abcd")
    with pytest.raises(CheckpointError, match="a is larger than 3 bytes"):
        read_regular(tmp_path / "a", most=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "No such file"),
    ],
    ids=["pipe", "folder", "zero", "null", "loop", "nothing"],
)
def test_what_would_hang_or_never_end_is_refused_at_once(tmp_path, make, words):
    make(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=words):
        read_json(tmp_path / "config.json")


def test_a_pipe_in_place_of_weights_or_settings_hangs_no_reader(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a named pipe"):
        read_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a named pipe"):
        read_config(tmp_path)
