"""The stages around one engine: what is tested, what is blamed, and what a report says of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.attention import prompt
from engine.config import EngineConfig
from engine.errors import EngineStartError, UnsupportedArchitectureError
from engine.execution.replayed import ReplayedStep
from engine.kernels.torch_kernels import TorchKernels
from loaders.model.packed_linear import PackedLinear
from loaders.quantization.kernel_rules import DeviceFacts
from loaders.reports.self_test import Check, SelfTestReport
from service.worker import step_test
from service.worker.attempt import Attempt
from service.worker.gpu_path import GpuPath
from service.worker.step_test import StepTest, dequantize
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, StartFailure
from tests.engine.tiny_models import FUSED, make_model

KNOWN = SelfTestReport(True, (Check("layers", True, "near"),), "triton", 0.5, 1)
STEPS = ["first tokens of 2 layers", "graph of 1 rows", "graph of 4 rows"]


class NoGrammars:
    """Reads no grammar, as no test asks for one."""


NO_GRAMMARS = NoGrammars()


class Judged:
    """One attempt whose step kernels and linears are PyTorch's own, unless told otherwise."""

    def __init__(self, *, self_test=KNOWN, step_kernels="torch", backends=(), **sizes):
        path = GpuPath(
            facts=DeviceFacts("cuda", (9, 0)),
            step_kernels=step_kernels,
            has_graphs=True,
            has_flash=True,
            backends=backends,
        )
        limits = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 96}
        own = {"num_blocks": 48, "enforce_eager": False, "step_kernels": "torch"}
        self.phases = []
        attempt = Attempt(lambda phase, *_: self.phases.append(phase), backends)
        attempt("finding", load_attempt=LoadAttempt(variant="owner/name:main").encode())
        config = EngineConfig(**{**limits, **own, **sizes})
        loaded = SimpleNamespace(model=make_model(FUSED["llama"]), self_test=self_test)
        self.test = StepTest(loaded, config, path, attempt)

    def run(self):
        self.test.before_engine()
        self.test.of_engine(self.test.build_engine(NO_GRAMMARS))
        return self.test.report

    def failure(self):
        with pytest.raises(EngineStartError) as caught:
            self.run()
        return StartFailure.of(caught.value)


class SortedKernel:
    """A kernel that takes its inputs in an order of its own."""

    input_permutation = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])

    def __init__(self):
        self._weight = torch.randn(8, 8)  # [out, in], in that order

    def __call__(self, x):
        return x @ self._weight.T

    def dequantize(self):
        return self._weight


class WrongKernels(TorchKernels):
    name = "triton"

    def silu_mul(self, gate_up):
        return 1.1 * super().silu_mul(gate_up)


def use_wrong_kernels(monkeypatch):
    def choose(name, device=None):
        return TorchKernels() if name == "torch" else WrongKernels()

    monkeypatch.setattr(step_test, "step_kernels", choose)


def use_flash(monkeypatch, flash):
    monkeypatch.setattr(prompt, "takes_flash", lambda *_: True)
    monkeypatch.setattr(prompt, "attend_by_flash", flash)


def test_what_is_right_adds_its_checks_to_the_self_tests():
    tested = Judged()
    report = tested.run()
    assert [check.name for check in report.checks] == ["layers", *STEPS]
    assert report.passed
    assert all(check.passed for check in report.checks)
    assert report.seconds > KNOWN.seconds
    assert tested.phases[-1] == "testing graphs"


def test_a_load_that_was_not_tested_reports_nothing():
    assert Judged(self_test=None).run() is None


def test_steps_that_are_not_recorded_have_no_graphs_to_test():
    report = Judged(enforce_eager=True).run()
    assert [check.name for check in report.checks] == ["layers", STEPS[0]]


def test_a_wrong_step_kernel_ends_the_attempt_before_an_engine_is_built(monkeypatch):
    use_wrong_kernels(monkeypatch)
    tested = Judged(step_kernels="triton")
    failure = tested.failure()
    assert (failure.kind, failure.step_kernels) == (FailureKind.STEP_TEST, ("triton",))
    assert (failure.backends, failure.graphs, failure.flash) == ((), False, False)
    assert failure.detail.startswith("silu_mul: triton: off by ")
    assert "building the engine" not in tested.phases
    assert not failure.self_test.passed
    assert [check.name for check in failure.self_test.failures] == ["silu_mul"]


def test_flash_attention_that_is_wrong_is_blamed_alone(monkeypatch):
    use_flash(monkeypatch, lambda query, *_, **__: torch.zeros_like(query))
    failure = Judged().failure()
    assert (failure.kind, failure.flash) == (FailureKind.STEP_TEST, True)
    assert (failure.step_kernels, failure.backends, failure.graphs) == ((), (), False)
    assert failure.detail.startswith("flash attention: off by ")


def test_flash_attention_that_cannot_run_is_blamed_in_its_own_words(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")

    use_flash(monkeypatch, refuse)
    failure = Judged().failure()
    assert (failure.kind, failure.flash) == (FailureKind.CANNOT_RUN, True)
    assert "only supports Ampere" in failure.detail


def test_right_flash_attention_is_listed_and_used(monkeypatch):
    used = []

    def flash(*given, **how):
        used.append(len(given))
        return prompt.attend_by_sdpa(*given, **how)

    use_flash(monkeypatch, flash)
    tested = Judged()
    tested.test.before_engine()
    in_test = len(used)
    tested.test.of_engine(tested.test.build_engine(NO_GRAMMARS))
    assert [check.name for check in tested.test.report.checks][1:3] == ["flash attention", STEPS[0]]
    assert len(used) > in_test


def test_a_graph_that_is_wrong_is_blamed_alone(monkeypatch):
    monkeypatch.setattr(ReplayedStep, "replay", lambda _: None)
    failure = Judged().failure()
    assert (failure.kind, failure.graphs) == (FailureKind.STEP_TEST, True)
    assert (failure.step_kernels, failure.backends, failure.flash) == ((), (), False)
    assert failure.detail.startswith("graph of 1 rows: ")


@pytest.mark.parametrize(
    ("given", "takes_flash", "blamed"),
    [
        ({"step_kernels": "triton", "backends": ("triton",)}, True, ("step_kernels", ("triton",))),
        ({"backends": ("triton",)}, True, ("backends", ("triton",))),
        ({}, True, ("flash", True)),
        ({}, False, ("flash", False)),  # nothing is left to do without
    ],
)
def test_a_whole_step_that_is_wrong_is_blamed_on_the_first_that_has_an_alternative(
    monkeypatch, given, takes_flash, blamed
):
    """Each part has passed by itself."""
    if takes_flash:
        use_flash(monkeypatch, prompt.attend_by_sdpa)
    monkeypatch.setattr(step_test, "step_kernels", lambda *_: TorchKernels())
    tested = Judged(**given)
    tested.test.before_engine()
    engine = tested.test.build_engine(NO_GRAMMARS)
    with torch.inference_mode():
        engine._runner._decoder._rotation[:, 1].neg_()
    with pytest.raises(EngineStartError) as caught:
        tested.test.of_engine(engine)
    failure = StartFailure.of(caught.value)
    name, value = blamed
    assert getattr(failure, name) == value
    others = {"step_kernels": (), "backends": (), "flash": False, "graphs": False}
    del others[name]
    assert {other: getattr(failure, other) for other in others} == others
    assert failure.detail.startswith("first tokens of 2 layers: ")


def test_a_model_whose_layers_are_not_found_says_so_and_is_tested_otherwise(monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedArchitectureError("keeps 2 lists of layers")

    monkeypatch.setattr(step_test, "run_reference_pass", refuse)
    report = Judged().run()
    untested = next(check for check in report.checks if check.name == STEPS[0])
    assert (untested.passed, untested.detail) == (None, "keeps 2 lists of layers")
    assert report.passed


def test_memory_that_the_reference_pass_took_on_a_gpu_is_given_back(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    tested = Judged()
    tested.test._note_reference()
    assert emptied == []  # a CPU keeps none
    tested.test._sizes = SimpleNamespace(device=torch.device("cuda"))
    tested.test._note_reference()
    assert emptied == [True]


def test_weights_come_in_the_models_own_order():
    layer = PackedLinear.from_kernel(SortedKernel(), 8, 8)
    weight, bias = dequantize(layer)
    x = torch.randn(2, 8)
    torch.testing.assert_close(x @ weight.T, layer(x))
    assert bias is None


def test_a_layer_that_is_not_packed_has_no_weight_to_dequantise():
    with pytest.raises(UnsupportedArchitectureError, match="a Linear stands where a packed layer"):
        dequantize(nn.Linear(2, 2))
