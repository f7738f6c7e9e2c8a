"""What is tried after an engine that could not be loaded. Pure policy, no processes."""

import pytest

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError, LiveCheckError
from service.settings import WorkerSettings
from service.variants.fallback import FallbackPolicy
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, LoadRequest, StartFailure

MAIN, SMALL = "owner/name:main", "owner/name:small"


def failed(kind, *backends):
    return EngineStartError("failed", start_failure=StartFailure(kind, backends).encode())


OUT_OF_MEMORY = failed(FailureKind.MEMORY)
WRONG = failed(FailureKind.SELF_TEST, "int4pack")


def policy_of(**settings):
    return FallbackPolicy(WorkerSettings(variant="owner/name", **settings))


def test_the_first_attempt_leaves_everything_to_the_settings():
    fallback = policy_of()
    assert fallback.load_request == LoadRequest()
    assert fallback.degraded is None


def test_later_engines_stay_with_the_branch_that_was_chosen():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="it fits"))
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=4096))
    assert fallback.load_request == LoadRequest(variant=MAIN)


def test_a_kernel_that_fails_its_self_test_is_replaced():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN))
    assert fallback.next_attempt(WRONG) == "without kernel int4pack: failed its self-test"
    assert fallback.load_request == LoadRequest(variant=MAIN, excluded_backends=("int4pack",))


def found_wrong(*backends):
    failure = StartFailure(FailureKind.LIVE_CHECK, backends)
    return LiveCheckError("wrong", start_failure=failure.encode())


def test_a_kernel_that_is_found_wrong_while_it_serves_is_replaced():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    fallback.note_success()
    given_up = "without kernel int4pack: differed from the files while it was serving"
    assert fallback.next_attempt(found_wrong("int4pack")) == fallback.degraded == given_up
    assert fallback.load_request == LoadRequest(
        variant=MAIN, excluded_backends=("int4pack",), doubts_files=True
    )


def test_files_that_nobody_may_hash_are_named_as_unverified_where_a_kernel_is_given_up_for_them():
    fallback = policy_of(verify="never")
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    reason = fallback.next_attempt(found_wrong("int4pack"))
    assert reason.endswith("while it was serving, which verify=never leaves unverified")


def test_files_are_doubted_until_an_engine_serves_them_again():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    fallback.next_attempt(found_wrong("int4pack"))
    fallback.reset()  # as after the damaged file was named, and somebody asks for it again
    assert fallback.load_request == LoadRequest(variant=MAIN, doubts_files=True)
    fallback.note_success()
    assert fallback.load_request == LoadRequest(variant=MAIN)


@pytest.mark.parametrize("settings", [{"strict": True}, {"backend": "int4pack"}])
def test_where_no_kernel_may_be_given_up_a_wrong_one_is_loaded_anew(settings):
    fallback = policy_of(**settings)
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    assert fallback.next_attempt(found_wrong("int4pack")) is None
    assert fallback.load_request == LoadRequest(variant=MAIN, doubts_files=True)


def test_memory_that_was_damaged_under_the_last_kernel_costs_no_branch():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    assert fallback.next_attempt(found_wrong()) is None
    assert fallback.load_request == LoadRequest(variant=MAIN, doubts_files=True)


def test_out_of_memory_tries_kernel_then_context_then_branch():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    assert (
        fallback.next_attempt(failed(FailureKind.MEMORY, "fp16pack"))
        == "without kernel fp16pack: out of memory"
    )
    lengths = []
    for _ in range(2):
        tried = (
            4096
            if fallback.load_request.max_model_len is None
            else fallback.load_request.max_model_len
        )
        fallback.note(LoadAttempt(variant=MAIN, max_model_len=tried))
        fallback.next_attempt(OUT_OF_MEMORY)
        lengths.append(fallback.load_request.max_model_len)
    assert lengths == [2048, 1024]
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=1024))
    fallback.next_attempt(OUT_OF_MEMORY)
    assert fallback.load_request == LoadRequest(excluded_variants=(MAIN,))
    fallback.note(LoadAttempt(variant=SMALL, reason="next"))
    assert fallback.load_request == LoadRequest(variant=SMALL, excluded_variants=(MAIN,))
    assert fallback.degraded == f"another branch than {MAIN}: out of memory"


def test_everything_that_was_given_up_for_a_branch_is_named():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN))
    fallback.next_attempt(WRONG)
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=4096))
    fallback.next_attempt(OUT_OF_MEMORY)
    assert fallback.degraded == (
        "without kernel int4pack: failed its self-test;"
        " context 2048 instead of 4096 tokens: out of memory"
    )


def test_a_branch_that_was_asked_for_is_never_exchanged():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN))
    assert fallback.next_attempt(OUT_OF_MEMORY) is None
    assert fallback.next_attempt(failed(FailureKind.SELF_TEST)) is None
    assert fallback.degraded is None


def test_kernels_that_all_failed_leave_the_next_branch():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    fallback.next_attempt(WRONG)
    fallback.note(LoadAttempt(variant=MAIN))
    fallback.next_attempt(WRONG)
    assert fallback.load_request == LoadRequest(excluded_variants=(MAIN,))


def test_branches_come_to_an_end():
    """Where none is left, an engine fails before it tells what it tries."""
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    fallback.next_attempt(OUT_OF_MEMORY)
    fallback.note(LoadAttempt(variant=SMALL, reason="next"))
    assert fallback.next_attempt(OUT_OF_MEMORY) is not None
    assert fallback.load_request == LoadRequest(excluded_variants=(MAIN, SMALL))
    assert fallback.next_attempt(OUT_OF_MEMORY) is None
    assert fallback.next_attempt(OUT_OF_MEMORY) is None


def test_a_new_life_tries_everything_again():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best", max_model_len=4096))
    fallback.next_attempt(OUT_OF_MEMORY)
    fallback.reset()
    assert (fallback.load_request, fallback.degraded) == (LoadRequest(variant=MAIN), None)
    fallback.note(LoadAttempt(variant=MAIN))
    fallback.next_attempt(OUT_OF_MEMORY)
    fallback.reset()
    assert (fallback.load_request, fallback.degraded) == (LoadRequest(), None)


def test_numbers_and_kernels_that_were_asked_for_are_kept():
    fallback = policy_of(max_model_len=4096, backend="int4pack")
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=4096))
    assert fallback.next_attempt(OUT_OF_MEMORY) is None
    assert fallback.next_attempt(WRONG) is None


def test_a_cache_of_a_size_that_was_asked_for_is_no_smaller_for_a_shorter_context():
    fallback = policy_of(kv_cache_size="8GiB")
    fallback.note(LoadAttempt(variant=MAIN, reason="best", max_model_len=4096))
    fallback.next_attempt(OUT_OF_MEMORY)
    assert fallback.load_request == LoadRequest(excluded_variants=(MAIN,))


def test_a_shorter_context_mends_no_kernel():
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=4096))
    assert fallback.next_attempt(failed(FailureKind.SELF_TEST)) is None


def test_strict_gives_nothing_up():
    fallback = policy_of(strict=True)
    fallback.note(LoadAttempt(variant=MAIN, reason="best", max_model_len=4096))
    assert fallback.next_attempt(OUT_OF_MEMORY) is None


@pytest.mark.parametrize("error", [EngineStartError("no such file"), EngineDeadError("died")])
def test_what_no_other_attempt_would_mend_ends_it(error):
    fallback = policy_of()
    fallback.note(LoadAttempt(variant=MAIN, reason="best", max_model_len=4096))
    assert fallback.next_attempt(error) is None


def test_only_the_second_kill_in_a_row_counts_as_want_of_memory():
    fallback = policy_of()
    killed = EngineKilledError("SIGKILL")
    fallback.note(LoadAttempt(variant=MAIN, max_model_len=4096))
    assert fallback.next_attempt(killed) is None
    fallback.note_success()
    assert fallback.next_attempt(killed) is None
    assert fallback.next_attempt(killed) == "context 2048 instead of 4096 tokens: out of memory"


def test_a_kill_before_anything_was_told_changes_nothing():
    fallback = policy_of()
    assert [fallback.next_attempt(EngineKilledError("SIGKILL")) for _ in range(3)] == [None] * 3


NATIVE = StartFailure(FailureKind.CANNOT_RUN, native=True, detail="RuntimeError: no such tile")


def test_a_cpus_kernels_in_cpp_are_given_up_before_anything_else_and_once():
    fallback = policy_of()
    error = EngineStartError("failed", start_failure=NATIVE.encode())
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    given_up = "without the C++ kernels: cannot run here (RuntimeError: no such tile)"
    assert fallback.next_attempt(error) == fallback.degraded == given_up
    assert fallback.load_request == LoadRequest(variant=MAIN, excludes_native=True)
    fallback.note(LoadAttempt(variant=MAIN))
    assert fallback.next_attempt(error) is None


def test_a_crash_of_kernels_in_cpp_has_them_left_out_and_the_others_kept():
    fallback = policy_of()
    crash = StartFailure(FailureKind.CRASH, native=True)
    fallback.note(LoadAttempt(variant=MAIN, reason="best", sudden_end=crash))
    given_up = "without the C++ kernels: ended the engine's process when first tried"
    assert fallback.next_attempt(EngineDeadError("ended by SIGILL")) == given_up
    assert fallback.load_request == LoadRequest(variant=MAIN, excludes_native=True)


@pytest.mark.parametrize("settings", [{"cpu_kernels": "native"}, {"strict": True}])
def test_kernels_in_cpp_that_were_asked_for_by_name_are_not_given_up(settings):
    fallback = policy_of(**settings)
    fallback.note(LoadAttempt(variant=MAIN, reason="best"))
    error = EngineStartError("failed", start_failure=NATIVE.encode())
    assert fallback.next_attempt(error) is None
    assert fallback.degraded is None
