"""What a GGUF file says of itself, and what is said of files that make no sense."""

import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loaders.errors import CheckpointError, LoadError, UnsupportedQuantizationError
from loaders.gguf.header import read_header
from tests.gguf_writer import write_gguf

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e6,
    "a.flag": True,
    "a.negative": -5,
    "tokenizer.ggml.tokens": ["<s>", "▁é", ""],
    "tokenizer.ggml.scores": [0.0, -1.5],
    "an.empty.list": [],
}


@pytest.fixture
def path(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    tensors = {"w": ("Q4_K", values), "norm": ("F32", values[0]), "v": ("Q8_0", values)}
    return write_gguf(tmp_path / "m.gguf", METADATA, tensors)


def header_of(data, *, num_bytes=None):
    return read_header(
        "m.gguf", lambda start, size: data[start : start + size], num_bytes=num_bytes
    )


def whole(data):
    return header_of(data, num_bytes=len(data))


def string(text, version=3):
    encoded = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<I" if version == 1 else "<Q", len(encoded)) + encoded


def start(num_tensors=0, num_keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def tensor(name="w", shape=(32,), kind=0, offset=0):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_says_the_same(tmp_path, version):
    values = np.zeros((4, 64), dtype=np.float32)
    path = write_gguf(tmp_path / "m", METADATA, {"w": ("Q8_0", values)}, version=version)
    header = whole(path.read_bytes())
    assert header.version == version
    expected = {key: tuple(v) if isinstance(v, list) else v for key, v in METADATA.items()}
    assert header.metadata == expected
    (only,) = header.tensors
    assert (only.name, only.dtype, only.shape) == ("w", "Q8_0", (4, 64))
    assert (only.num_bytes, header.file_bytes) == (4 * 68, header.data_start + 4 * 68)


def test_tensors_lie_where_the_gguf_package_finds_them(path):
    header = whole(path.read_bytes())
    theirs = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert {tensor.name for tensor in header.tensors} == theirs.keys()
    for tensor in header.tensors:
        other = theirs[tensor.name]
        assert header.data_start + tensor.offset == other.data_offset
        assert tensor.num_bytes == other.n_bytes
        assert list(tensor.shape) == [int(size) for size in other.shape[::-1]]


def test_the_first_bytes_are_enough(path):
    """A file on a hub is read by ranges, its size is not known, and its data is never asked for."""
    data = path.read_bytes()
    asked = []

    def read(start, size):
        asked.append(start + size)
        return data[: header_bytes + 7][start : start + size]

    header_bytes = whole(data).num_bytes
    assert read_header("m.gguf", read).tensors == whole(data).tensors
    infos = read_header("m.gguf", read).tensor_infos(path)
    assert (infos["w"].dtype, infos["w"].shape, infos["w"].num_bytes) == ("Q4_K", (3, 256), 432)


def test_a_file_cut_anywhere_is_truncated_and_says_by_how_much(path):
    data = path.read_bytes()
    for size in range(len(data) - 32):  # the last tensor is padded
        with pytest.raises(CheckpointError, match=rf"m\.gguf is truncated: {size} bytes found"):
            whole(data[:size])
    with pytest.raises(CheckpointError, match=rf"{whole(data).file_bytes} expected"):
        whole(data[: whole(data).file_bytes - 1])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"ggjt" + bytes(60), r"begins with .*b'ggjt'"),
        (b"version https://git-lfs.github.com/spec/v1\n" + bytes(60), "git-lfs pointer"),
        (start(version=4) + bytes(60), "of GGUF version 4; versions 1, 2, 3 are read"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (start(num_tensors=2**62), "claims 4611686018427387904 tensors"),
        (start(num_keys=2**40), "claims 1099511627776 metadata keys"),
        (start(num_keys=1) + struct.pack("<Q", 2**63) + bytes(60), "claims a length of"),
        (start(num_keys=1) + string("k") + struct.pack("<IQ", 8, 2**60), "claims a length of"),
        (start(num_keys=1) + string("k") + struct.pack("<I", 77), "k is of the unknown type 77"),
        (start(num_keys=1) + string(b"\xff\xfe"), "is not UTF-8"),
        (
            start(num_keys=1) + string("k") + struct.pack("<IIQ", 9, 4, 2**50),
            "claims 1125899906842624 values in k",
        ),
        (
            start(num_keys=1) + string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "nests arrays deeper than 4",
        ),
        (start(num_keys=2) + (string("k") + struct.pack("<IB", 7, 1)) * 2, "'k' is there twice"),
        (start(num_tensors=2) + tensor() * 2, "'w' is there twice"),
        (start(num_tensors=1) + tensor(shape=()), "claims 0 dimensions"),
        (start(num_tensors=1) + string("w") + struct.pack("<I", 9) + bytes(99), "claims 9 dim"),
        (start(num_tensors=1) + tensor(shape=(2**40, 2**40)), r"claims the shape"),
        (start(num_tensors=1) + tensor(shape=(0, 5)), r"claims the shape \[5, 0\]"),
        (start(num_tensors=1) + tensor(shape=(40, 2), kind=12), "no whole Q4_K blocks"),
        (start(num_tensors=1) + tensor(offset=2**63), "is truncated: .* expected"),
        (start(num_tensors=1) + tensor(offset=33) + bytes(512), "begins at 33, no multiple of 32"),
        (
            start(num_tensors=2) + tensor() + tensor("v", offset=32) + bytes(999),
            "v and w overlap",
        ),
        (
            start(num_keys=1) + string("general.alignment") + struct.pack("<II", 4, 33),
            "alignment is 33, expected a power of two",
        ),
        (
            start(num_keys=1) + string("general.alignment") + struct.pack("<I", 8) + string("x"),
            "alignment is x, expected",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(data, problem):
    with pytest.raises(CheckpointError, match=problem):
        whole(data)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(16, "IQ2_XXS"), (39, "MXFP4"), (20, "IQ4_NL"), (15, "Q8_K"), (99, "type 99")],
)
def test_types_that_are_not_read_are_refused_by_name_with_what_is(kind, name):
    data = start(num_tensors=1) + tensor(shape=(256, 2), kind=kind) + bytes(999)
    with pytest.raises(UnsupportedQuantizationError, match=rf"w is stored as {name}.*read are F32"):
        whole(data)


def test_a_header_that_claims_much_costs_little_memory():
    claims = start(num_keys=1) + string("k") + struct.pack("<IIQ", 9, 8, 4_000_000)
    data = claims + bytes(8) * 50_000
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="is truncated"):
        whole(data)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans(), st.sampled_from([1, 2, 3]))
@example(b"\xff" * 64, True, 3)
def test_noise_raises_errors_of_ours_and_nothing_else(noise, is_short, version):
    data = b"GGUF" + struct.pack("<I", version)
    counts = struct.pack("<II" if version == 1 else "<QQ", 2, 2) if is_short else b""
    with contextlib.suppress(LoadError):
        whole(data + counts + noise)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_some_bytes_changed_is_read_or_refused(data, shared):
    changed = bytearray(shared)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + 1] = data.draw(st.binary(min_size=0, max_size=3))
    try:
        header = whole(bytes(changed))
    except LoadError:
        return
    assert header.file_bytes <= len(changed)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    values = np.zeros((2, 64), dtype=np.float32)
    tensors = {"w": ("Q8_0", values), "v": ("F16", values)}
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", METADATA, tensors)
    return path.read_bytes()
