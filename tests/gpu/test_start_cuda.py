"""A start as the server makes it, on Triton; what fails is named and done without next time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.errors import EngineStartError
from engine.kernels.triton_kernels import TritonKernels
from loaders.model.kernels.triton_linear import TritonKernel
from service.settings import WorkerSettings
from service.worker.build import build_engine
from service.worker_protocol.load_attempt import FailureKind, LoadRequest, StartFailure
from service.worker_protocol.model_description import ModelDescription
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gptq_checkpoint(
        tmp_path_factory.mktemp("started") / "model",
        tiny_llama(),
        desc_act=True,
        tokenizer=tiny_tokenizer(),
    )


def start(folder: Path, request: LoadRequest | None = None) -> ModelDescription:
    settings = WorkerSettings(
        variant=str(folder),
        cache_dir=folder.parent,
        local_files_only=True,
        max_num_seqs=4,
        max_model_len=512,
        kv_cache_size=2**24,
        device="cuda:0",
    )
    built = build_engine(settings, request or LoadRequest(), ignore_progress)
    return ModelDescription.decode(built.model_description)


def ignore_progress(phase: str, percent: float | None = None, load_attempt: object = None) -> None:
    pass


def failure_of(folder: Path) -> StartFailure:
    with pytest.raises(EngineStartError) as raised:
        start(folder)
    failure = StartFailure.of(raised.value)
    assert failure is not None
    return failure


def spoiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **others: 1.25 * function(*arguments, **others)


def test_auto_takes_triton_and_tests_layers_steps_and_graphs(folder: Path):
    described = start(folder)
    assert described.backend == "triton"
    assert described.unsupported is None
    report = described.self_test
    assert report is not None
    assert report.passed
    passed = {check.name for check in report.checks if check.passed}
    assert passed >= {"add_norm", "silu_mul", "rotate_and_store", "decode_attention"}
    assert passed >= {"first tokens of 2 layers", "graph of 1 rows", "graph of 4 rows"}


def test_a_wrong_linear_kernel_is_named_and_the_reference_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TritonKernel, "__call__", spoiled(TritonKernel.__call__))
    failure = failure_of(folder)
    assert (failure.kind, failure.backends) == (FailureKind.SELF_TEST, ("triton",))
    assert start(folder, LoadRequest(excluded_backends=failure.backends)).backend == "reference"


def test_a_wrong_step_kernel_is_named_and_the_references_serve(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TritonKernels, "silu_mul", spoiled(TritonKernels.silu_mul))
    failure = failure_of(folder)
    assert (failure.kind, failure.step_kernels) == (FailureKind.STEP_TEST, ("triton",))
    described = start(folder, LoadRequest(excluded_step_kernels=failure.step_kernels))
    assert described.backend == "triton"
    assert described.self_test is not None
    assert described.self_test.passed
