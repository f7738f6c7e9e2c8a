"""What is given up of the path on a GPU, one part after the other. Pure policy, no processes."""

import pytest
from msgspec import structs

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError
from service.settings import WorkerSettings
from service.variants.fallback import FallbackPolicy
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, LoadRequest, StartFailure

MAIN = "owner/name:main"
STEP_KERNELS = StartFailure(
    FailureKind.STEP_TEST, step_kernels=("triton",), detail="add_norm is off"
)
GRAPHS = StartFailure(FailureKind.STEP_TEST, graphs=True)
FLASH = StartFailure(FailureKind.STEP_TEST, flash=True, detail="off by 7")
LINEARS = StartFailure(FailureKind.CANNOT_RUN, ("triton",), detail="install gcc")


def policy_of(**settings):
    fallback = FallbackPolicy(WorkerSettings(variant="owner/name", **settings))
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    return fallback


def started_with(failure):
    return EngineStartError("failed", start_failure=failure.encode())


def test_step_kernels_that_fail_their_test_are_left_out_and_the_words_say_what_was_found():
    fallback = policy_of()
    given_up = "without step kernels triton: failed the test of its steps (add_norm is off)"
    assert fallback.next_attempt(started_with(STEP_KERNELS)) == given_up
    assert fallback.degraded == given_up
    assert fallback.load_request == LoadRequest(variant=MAIN, excluded_step_kernels=("triton",))


def test_each_part_is_given_up_once_and_the_others_are_kept():
    fallback = policy_of()
    for failure in (LINEARS, STEP_KERNELS, FLASH, GRAPHS):
        fallback.next_attempt(started_with(failure))
        fallback.note(LoadAttempt(variant=MAIN))
    assert fallback.load_request == LoadRequest(
        variant=MAIN,
        excluded_backends=("triton",),
        excluded_step_kernels=("triton",),
        excludes_graphs=True,
        excludes_flash=True,
    )
    assert fallback.degraded == (
        "without kernel triton: cannot run here (install gcc);"
        " without step kernels triton: failed the test of its steps (add_norm is off);"
        " without flash attention: failed the test of its steps (off by 7);"
        " without graphs: failed the test of its steps"
    )


@pytest.mark.parametrize("failure", [STEP_KERNELS, FLASH, GRAPHS])
def test_where_nothing_of_the_step_is_left_to_give_up_no_other_branch_is_tried(failure):
    fallback = policy_of()
    fallback.next_attempt(started_with(failure))
    fallback.note(LoadAttempt(variant=MAIN))
    assert fallback.next_attempt(started_with(failure)) is None


@pytest.mark.parametrize(
    ("settings", "failure"),
    [
        ({"step_kernels": "triton"}, STEP_KERNELS),
        ({"enforce_eager": False}, GRAPHS),
        ({"backend": "triton"}, LINEARS),
        ({"strict": True}, STEP_KERNELS),
        ({"strict": True}, FLASH),
    ],
)
def test_what_was_asked_for_by_name_is_not_given_up(settings, failure):
    fallback = policy_of(**settings)
    assert fallback.next_attempt(started_with(failure)) is None
    assert fallback.degraded is None


def test_a_process_that_crashes_while_a_part_is_tried_has_that_part_left_out():
    fallback = policy_of()
    crash = StartFailure(FailureKind.CRASH, step_kernels=("triton",))
    fallback.note(LoadAttempt(variant=MAIN, sudden_end=crash))
    given_up = fallback.next_attempt(EngineDeadError("ended by SIGABRT"))
    assert given_up == "without step kernels triton: ended the engine's process when first tried"


def test_a_process_that_is_killed_then_counts_as_one_out_of_memory():
    fallback = policy_of()
    crash = StartFailure(FailureKind.CRASH, step_kernels=("triton",))
    fallback.note(LoadAttempt(variant=MAIN, sudden_end=crash))
    assert fallback.next_attempt(EngineKilledError("SIGKILL")) is None
    assert fallback.load_request.excluded_step_kernels == ()


def test_what_ended_well_is_to_blame_for_no_later_crash():
    fallback = policy_of()
    crash = StartFailure(FailureKind.CRASH, step_kernels=("triton",))
    fallback.note(LoadAttempt(variant=MAIN, sudden_end=crash))
    fallback.note_success()
    assert fallback.next_attempt(EngineDeadError("ended by SIGSEGV")) is None


def test_what_crosses_between_the_processes_arrives_whole():
    attempt = LoadAttempt(variant=MAIN, sudden_end=structs.replace(GRAPHS, detail="stale"))
    assert LoadAttempt.decode(attempt.encode()) == attempt
