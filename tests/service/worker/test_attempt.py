"""Who is blamed for what happens while something runs for the first time."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineStartError, OutOfMemoryError
from loaders.errors import CheckpointError
from service.worker.attempt import Attempt
from service.worker.cpu_kernels import NATIVE_SUSPECTS
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, StartFailure

KNOWN = LoadAttempt(variant="owner/name:main", reason="it fits")
KERNELS = StartFailure(FailureKind.CANNOT_RUN, step_kernels=("triton",))


class Client:
    """What has been reported."""

    def __init__(self):
        self.phases = []
        self.sudden_end = None

    def __call__(self, phase, percent=None, load_attempt=None):
        self.phases.append((phase, percent))
        if load_attempt is not None:
            self.sudden_end = LoadAttempt.decode(load_attempt).sudden_end


def begun(*backends):
    client = Client()
    attempt = Attempt(client, backends)
    attempt("finding the files", load_attempt=KNOWN.encode())
    return client, attempt


def test_linear_kernels_are_to_blame_while_they_are_prepared_and_tested():
    client, attempt = begun("triton")
    blamed = {}
    for phase in ("reading the weights", "preparing kernels", "self-test", "building the engine"):
        attempt(phase, 50.0)
        blamed[phase] = client.sudden_end
    crash = StartFailure(FailureKind.CRASH, ("triton",))
    assert list(blamed.values()) == [None, crash, crash, None]
    assert client.phases[2] == ("preparing kernels", 50.0)


def test_where_no_kernel_has_an_alternative_none_is_blamed():
    client, attempt = begun()
    attempt("preparing kernels")
    assert client.sudden_end is None


def test_a_part_is_named_before_it_runs_and_no_longer_when_it_has():
    client, attempt = begun()
    with attempt.first_run("testing the step kernels", KERNELS):
        assert client.sudden_end == StartFailure(FailureKind.CRASH, step_kernels=("triton",))
    assert client.sudden_end is None


def test_kernels_in_cpp_are_named_before_they_run_and_blamed_for_what_they_raise():
    client, attempt = begun()
    blamed = []

    def run():
        with attempt.first_run("trying", NATIVE_SUSPECTS):
            blamed.append(client.sudden_end)
            raise RuntimeError("no tile")

    with pytest.raises(EngineStartError, match="trying: RuntimeError: no tile") as caught:
        run()
    assert blamed == [StartFailure(FailureKind.CRASH, native=True)]
    failure = StartFailure.of(caught.value)
    assert (failure.kind, failure.native) == (FailureKind.CANNOT_RUN, True)
    assert failure.backends == failure.step_kernels == ()


def failure_from(error):
    _, attempt = begun()
    with pytest.raises(EngineStartError) as caught, attempt.first_run("testing", KERNELS):
        raise error
    return StartFailure.of(caught.value)


def test_an_error_of_any_class_is_blamed_on_the_part_that_ran():
    failure = failure_from(AttributeError("no such builtin"))
    assert (failure.kind, failure.step_kernels) == (FailureKind.CANNOT_RUN, ("triton",))
    assert failure.detail == "AttributeError: no such builtin"


def test_a_step_that_ran_and_gave_nonsense_failed_its_test():
    failure = failure_from(EngineStartError("the logits are NaN"))
    assert (failure.kind, failure.detail) == (FailureKind.STEP_TEST, "the logits are NaN")


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        CheckpointError("damaged"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        EngineStartError("said elsewhere", start_failure=KERNELS.encode()),
    ],
)
def test_what_others_deal_with_is_passed_on_as_it_is(error):
    """Memory has a fallback of its own, and the process of a lost device ends at once."""
    client, attempt = begun()
    with pytest.raises(type(error)) as caught, attempt.first_run("testing", KERNELS):
        raise error
    assert caught.value is error
    assert client.sudden_end.step_kernels == ("triton",)  # as the process ends, if it does


def test_what_linear_kernels_raise_while_a_model_is_loaded_is_blamed_on_them():
    _, attempt = begun("triton")
    attempt("self-test")
    with pytest.raises(EngineStartError) as caught, attempt.blaming():
        raise TypeError("no such builtin")
    failure = StartFailure.of(caught.value)
    assert (failure.kind, failure.backends) == (FailureKind.CANNOT_RUN, ("triton",))


def test_what_is_raised_while_nobody_is_named_is_nobodys_fault():
    _, attempt = begun("triton")
    attempt("reading the weights")
    with pytest.raises(TypeError), attempt.blaming():
        raise TypeError("no such builtin")
