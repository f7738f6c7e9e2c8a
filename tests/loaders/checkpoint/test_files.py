import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from loaders.checkpoint.files import (
    choose_shards,
    gather_tensors,
    read_checkpoint,
    read_header,
    read_json,
    weight_map_of,
)
from loaders.errors import CheckpointError, UnsafeCheckpointError

TENSORS = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int32)}


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_single_file_gives_every_tensor_with_shape_and_size(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    assert {n: (t.dtype, t.shape) for n, t in checkpoint.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I32", (4,)),
    }
    assert checkpoint.num_bytes == 40


def test_shards_are_those_of_the_index(tmp_path):
    for name in TENSORS:
        save_file({name: TENSORS[name]}, tmp_path / f"{name}.safetensors")
    save_file(TENSORS, tmp_path / "left-over.safetensors")
    write_index(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
    assert [path.name for path in read_checkpoint(tmp_path).shards] == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_a_missing_shard_is_named(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "a.safetensors")
    write_index(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
        read_checkpoint(tmp_path)


def test_a_tensor_that_the_index_promises_and_no_shard_holds_is_named(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "a.safetensors")
    write_index(tmp_path, {"a": "a.safetensors", "lost": "a.safetensors"})
    with pytest.raises(CheckpointError, match="promises tensor lost"):
        read_checkpoint(tmp_path)


def test_a_truncated_file_tells_both_sizes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(
        CheckpointError, match=f"{len(whole) - 5} bytes found, {len(whole)} expected"
    ):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x00",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 5) + b"{]}[]",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1]},
        "nonsense",
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, entry):
    path = write_raw(tmp_path / "model.safetensors", {"a": entry}, b"\0" * 8)
    with pytest.raises(CheckpointError, match="damaged header"):
        read_header(path)


def test_a_tensor_named_twice_is_refused(tmp_path):
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    path = write_raw(tmp_path / "x.safetensors", f'{{"a":{entry},"a":{entry}}}'.encode(), b"\0")
    with pytest.raises(CheckpointError, match="named twice"):
        read_header(path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"is in one\.safetensors and in two\.safetensors"):
        read_checkpoint(tmp_path)


def test_several_files_without_an_index_are_refused_by_name(tmp_path):
    for name in TENSORS:
        save_file({name: TENSORS[name]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors and no .*index"):
        read_checkpoint(tmp_path)


def test_deep_nesting_is_damage_and_no_crash(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="damaged header"):
        read_header(write_raw(tmp_path / "model.safetensors", b"[" * 100_000))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, name):
    write_index(tmp_path, {"a": name})
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt"])
def test_a_pickle_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(UnsafeCheckpointError, match=f"{name}.*can run any code"):
        read_checkpoint(tmp_path)


def test_a_folder_without_weights_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(CheckpointError, match=r"notes\.md"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"a"'])
def test_settings_that_are_no_object_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1e400]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": ["1"]},
        {"shape": [1] * 100},
        {"shape": [10**4000] * 10},
        {"data_offsets": [0, 1e400]},
        {"data_offsets": [-1, 0]},
    ],
    ids=str,
)
def test_numbers_that_are_no_sizes_are_damage(tmp_path, changes):
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], **changes}
    path = write_raw(tmp_path / "model.safetensors", {"a": entry}, b"\0")
    with pytest.raises(CheckpointError, match="damaged header"):
        read_header(path)


def write_many(path, count):
    header = {
        f"model.layers.{i}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(count)
    }
    return write_raw(path, header, b"\0" * count)


def test_a_hundred_thousand_tensors_are_read_and_one_more_is_refused(tmp_path):
    path = write_many(tmp_path / "model.safetensors", 100_000)
    assert len(read_checkpoint(tmp_path).tensors) == 100_000
    write_many(path, 100_001)
    with pytest.raises(CheckpointError, match="names 100001 tensors; at most 100000"):
        read_checkpoint(tmp_path)


def test_the_tensors_of_all_shards_and_of_the_index_count(tmp_path):
    with pytest.raises(CheckpointError, match="the checkpoint names 120000 tensors"):
        gather_tensors({name: [None] * 60_000 for name in "ab"}, None)
    with pytest.raises(CheckpointError, match=r"index\.json names 100001 tensors"):
        weight_map_of({"weight_map": dict.fromkeys(map(str, range(100_001)), "a.safetensors")})


def test_a_header_of_nothing_but_empty_lists_is_not_parsed(tmp_path):
    path = write_raw(tmp_path / "model.safetensors", b"[" + b"[]," * 3_000_000 + b"[]]")
    with pytest.raises(CheckpointError, match="more than 100000 tensors need"):
        read_header(path)


def test_a_hundred_thousand_shards_are_looked_for_in_no_time():
    """A list of names would be searched through for each of them."""
    names = [f"{i}.safetensors" for i in range(100_000)]
    assert len(choose_shards(names, dict(zip(names, names, strict=True)), where="x")) == 100_000


def test_settings_have_four_megabytes_and_an_index_more(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "' + "x" * 4_000_000 + '"}')
    with pytest.raises(CheckpointError, match=r"a\.json is larger than 4000000 bytes"):
        read_json(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json", most=5_000_000)
