"""The parts of a run share one checkpoint."""

from __future__ import annotations

from benchmarks.gpu.context import Context
from benchmarks.gpu.model_files import TINY, model_files


def test_the_second_part_that_asks_finds_what_the_first_one_wrote(tmp_path):
    first = model_files(Context(tmp_path / "speed.json", is_dry=True))
    written = (first.folder / "model.safetensors").stat()
    second = model_files(Context(tmp_path / "http.json", is_dry=True))
    assert (second.folder, second.num_bytes, second.shape) == (first.folder, first.num_bytes, TINY)
    assert second.write_s == 0 < first.write_s
    assert (second.folder / "model.safetensors").stat() == written


def test_half_a_checkpoint_is_written_anew(tmp_path):
    context = Context(tmp_path / "speed.json", is_dry=True)
    files = model_files(context)
    whole = (files.folder / "model.safetensors").read_bytes()
    (files.folder / "model.safetensors").write_bytes(whole[:100])
    (tmp_path / f"{files.folder.name}.json").unlink()  # the part ended before it had noted it
    assert model_files(context).write_s > 0
    assert (files.folder / "model.safetensors").read_bytes() == whole
