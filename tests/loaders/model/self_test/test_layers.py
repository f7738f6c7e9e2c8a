"""The layers' self-test of kernels that change their way with the number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loaders.errors import SelfTestError
from loaders.load import load
from loaders.model.kernels import launches, resolve
from loaders.model.packed_linear import packed_layers
from loaders.quantization.kernel_rules import DeviceFacts
from tests.grouped_backends import PlainBackend
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from loaders.load import LoadedModel
    from tests.grouped_backends import PlainKernel

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
}
WAYS = {
    "one row": (1, 1),
    "a small tile": (2, 16),
    "a large tile": (17, 32),
    "several tiles": (33, 64),
    "dequantised": (65, 10**6),
}


class SpoilingWay(PlainBackend):
    """Goes by the name of kernels with several ways, one of which may be wrong."""

    name = "triton"

    def __init__(self, first: int = 0, last: int = 0) -> None:
        """first, last: the numbers of rows that are spoilt."""
        super().__init__()
        self._first, self._last = first, last

    def prepare_grouped(self, weight, bias, dtype):
        kernel = super().prepare_grouped(weight, bias, dtype)
        return _Spoiling(kernel, self._first, self._last)


class _Spoiling:
    def __init__(self, kernel: PlainKernel, first: int, last: int) -> None:
        self.input_permutation = kernel.input_permutation
        self.num_invariant_rows, self.unit_roundoff = 1, kernel.unit_roundoff
        self.dequantize, self.fuse = kernel.dequantize, kernel.fuse
        self._kernel, self._first, self._last = kernel, first, last

    def __call__(self, x: Tensor) -> Tensor:
        product = self._kernel(x)
        return product * 1.1 if self._first <= len(x) <= self._last else product


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gptq_checkpoint(
        tmp_path_factory.mktemp("gptq"), tiny_llama(**SHAPE), tokenizer=tiny_tokenizer()
    )


def loaded_by(monkeypatch: pytest.MonkeyPatch, backend: SpoilingWay, folder: Path) -> LoadedModel:
    monkeypatch.setattr(resolve, "BACKENDS", (backend, *resolve.BACKENDS))
    return load(str(folder), device="cpu", self_test=True)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_tried_at_load(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    with pytest.raises(SelfTestError, match=r"off by .* allowed\), .*rows at once") as caught:
        loaded_by(monkeypatch, SpoilingWay(*WAYS[way]), checkpoint)
    assert caught.value.report.suspects == {"triton"}


def test_a_short_context_hides_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The test's prompt has 12 tokens there, which are taken again until they are enough."""
    model = tiny_llama(**SHAPE, max_position_embeddings=20)
    write_gptq_checkpoint(tmp_path, model, tokenizer=tiny_tokenizer())
    for way in ("a large tile", "dequantised"):
        with monkeypatch.context() as context, pytest.raises(SelfTestError):
            loaded_by(context, SpoilingWay(*WAYS[way]), tmp_path)


@pytest.mark.parametrize("way", ["one row", "dequantised"])
def test_the_live_check_tries_few_rows_and_so_many_that_weights_are_dequantised(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, way: str
):
    # What a layer of millions of weights is held to; the rule for kernels of one way.
    monkeypatch.setattr("loaders.model.self_test.read_part.MAX_MULTIPLICATIONS", 1)
    loaded = loaded_by(monkeypatch, SpoilingWay(), checkpoint)
    live = loaded.live_layers
    assert live is not None
    for name, layer in packed_layers(loaded.model).items():
        if ".layers." not in name:
            continue
        spoilt = _Spoiling(_Whole(layer), *WAYS[way])
        (part,) = live.parts(name)
        for many in (True, False):
            read = live.read(part, with_many_rows=many)
            assert read.compare(layer).passed
            assert read.compare(spoilt).passed is (many != (way == "dequantised"))


class _Whole:
    """A layer as a kernel."""

    input_permutation, unit_roundoff = None, 0.0

    def __init__(self, layer) -> None:
        self._layer = layer
        self.dequantize = self.fuse = None

    def __call__(self, x: Tensor) -> Tensor:
        return self._layer(x)


# ── Triton's kernels in the interpreter ─────────────────────────────────────────────────────────


def with_an_output_off(multiply):
    def spoilt(*args):
        product = multiply(*args)
        product[:, 5] += product[:, 6]
        return product

    return spoilt


@pytest.mark.slow
@pytest.mark.parametrize("module", ["few_rows", "dequantize", None])
def test_triton_kernels_wrong_in_one_way_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str | None
):
    levels = pytest.importorskip("loaders.model.kernels.triton.levels")
    if not levels.INTERPRETED:
        pytest.skip("Triton compiles for a GPU here")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    model = tiny_llama(**SHAPE | shape, num_key_value_heads=1, max_position_embeddings=20)
    write_gptq_checkpoint(tmp_path, model, tokenizer=tiny_tokenizer())
    gpu = DeviceFacts("cuda", (9, 0))
    if module is None:
        with launches.counted() as found:
            loaded = load(str(tmp_path), device="cpu", device_facts=gpu, self_test=True)
        assert loaded.provenance.backend == "triton"
        assert min(found["linear_few_rows"], found["linear_dequantize"]) > 0
        return
    kernels = pytest.importorskip(f"loaders.model.kernels.triton.{module}")
    monkeypatch.setattr(kernels, "multiply", with_an_output_off(kernels.multiply))
    with pytest.raises(SelfTestError) as caught:
        load(str(tmp_path), device="cpu", device_facts=gpu, self_test=True)
    assert caught.value.report.suspects == {"triton"}
