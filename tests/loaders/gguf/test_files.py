"""Sets of GGUF files, whose headers are held to limits together."""

import numpy as np
import pytest

from loaders.errors import CheckpointError
from loaders.gguf import files
from tests.gguf_writer import write_set


@pytest.mark.parametrize(("limit", "value"), [("MAX_TENSORS", 3), ("MAX_HEADER_BYTES", 300)])
def test_headers_of_a_set_are_held_to_the_limits_of_one(tmp_path, monkeypatch, limit, value):
    values = ("F32", np.zeros(32, dtype=np.float32))
    metadata = {"general.architecture": "llama"}
    tensors = {f"blk.{layer}.attn_norm.weight": values for layer in range(4)}
    first, *_ = write_set(tmp_path, "m", metadata, tensors, 2)
    assert len(files.open_files(first).tensors) == 4
    monkeypatch.setattr(files, limit, value)
    with pytest.raises(
        CheckpointError, match=r"headers up to m-00002-of-00002\.gguf have .* 4 ten"
    ):
        files.open_files(first)
