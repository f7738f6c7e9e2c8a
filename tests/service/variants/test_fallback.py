"""What is tried after an engine that could not be loaded. Pure policy, no processes."""

import pytest

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError
from service.settings import WorkerSettings
from service.variants.fallback import Ladder
from service.worker_protocol.load_attempt import Attempt, Failure, StartFailure, Trial

MAIN, SMALL = "owner/name:main", "owner/name:small"


def failed(kind, *backends):
    return EngineStartError("failed", about=StartFailure(kind, backends).encode())


OUT_OF_MEMORY = failed(Failure.MEMORY)
WRONG = failed(Failure.SELF_TEST, "int4pack")


def ladder_of(**settings):
    return Ladder(WorkerSettings(variant="owner/name", **settings))


def test_the_first_attempt_leaves_everything_to_the_settings():
    ladder = ladder_of()
    assert ladder.attempt == Attempt()
    assert ladder.degraded is None


def test_later_engines_stay_with_the_branch_that_was_chosen():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="it fits"))
    ladder.note(Trial(variant=MAIN, max_model_len=4096))
    assert ladder.attempt == Attempt(variant=MAIN)


def test_a_kernel_that_fails_its_self_test_is_replaced():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN))
    assert ladder.step_down(WRONG) == "without kernel int4pack: failed its self-test"
    assert ladder.attempt == Attempt(variant=MAIN, excluded_backends=("int4pack",))


def test_out_of_memory_tries_kernel_then_context_then_branch():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="best"))
    assert (
        ladder.step_down(failed(Failure.MEMORY, "fp16pack"))
        == "without kernel fp16pack: out of memory"
    )
    lengths = []
    for _ in range(2):
        tried = 4096 if ladder.attempt.max_model_len is None else ladder.attempt.max_model_len
        ladder.note(Trial(variant=MAIN, max_model_len=tried))
        ladder.step_down(OUT_OF_MEMORY)
        lengths.append(ladder.attempt.max_model_len)
    assert lengths == [2048, 1024]
    ladder.note(Trial(variant=MAIN, max_model_len=1024))
    ladder.step_down(OUT_OF_MEMORY)
    assert ladder.attempt == Attempt(excluded_variants=(MAIN,))
    ladder.note(Trial(variant=SMALL, reason="next"))
    assert ladder.attempt == Attempt(variant=SMALL, excluded_variants=(MAIN,))
    assert ladder.degraded == f"another branch than {MAIN}: out of memory"


def test_everything_that_was_given_up_for_a_branch_is_named():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN))
    ladder.step_down(WRONG)
    ladder.note(Trial(variant=MAIN, max_model_len=4096))
    ladder.step_down(OUT_OF_MEMORY)
    assert ladder.degraded == (
        "without kernel int4pack: failed its self-test;"
        " context 2048 instead of 4096 tokens: out of memory"
    )


def test_a_branch_that_was_asked_for_is_never_exchanged():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN))
    assert ladder.step_down(OUT_OF_MEMORY) is None
    assert ladder.step_down(failed(Failure.SELF_TEST)) is None
    assert ladder.degraded is None


def test_kernels_that_all_failed_leave_the_next_branch():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="best"))
    ladder.step_down(WRONG)
    ladder.note(Trial(variant=MAIN))
    ladder.step_down(WRONG)
    assert ladder.attempt == Attempt(excluded_variants=(MAIN,))


def test_branches_come_to_an_end():
    """Where none is left, an engine fails before it tells what it tries."""
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="best"))
    ladder.step_down(OUT_OF_MEMORY)
    ladder.note(Trial(variant=SMALL, reason="next"))
    assert ladder.step_down(OUT_OF_MEMORY) is not None
    assert ladder.attempt == Attempt(excluded_variants=(MAIN, SMALL))
    assert ladder.step_down(OUT_OF_MEMORY) is None
    assert ladder.step_down(OUT_OF_MEMORY) is None


def test_a_new_life_tries_everything_again():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="best", max_model_len=4096))
    ladder.step_down(OUT_OF_MEMORY)
    ladder.begin()
    assert (ladder.attempt, ladder.degraded) == (Attempt(variant=MAIN), None)
    ladder.note(Trial(variant=MAIN))
    ladder.step_down(OUT_OF_MEMORY)
    ladder.begin()
    assert (ladder.attempt, ladder.degraded) == (Attempt(), None)


def test_numbers_and_kernels_that_were_asked_for_are_kept():
    ladder = ladder_of(max_model_len=4096, backend="int4pack")
    ladder.note(Trial(variant=MAIN, max_model_len=4096))
    assert ladder.step_down(OUT_OF_MEMORY) is None
    assert ladder.step_down(WRONG) is None


def test_a_cache_of_a_size_that_was_asked_for_is_no_smaller_for_a_shorter_context():
    ladder = ladder_of(kv_cache_size="8GiB")
    ladder.note(Trial(variant=MAIN, reason="best", max_model_len=4096))
    ladder.step_down(OUT_OF_MEMORY)
    assert ladder.attempt == Attempt(excluded_variants=(MAIN,))


def test_a_shorter_context_mends_no_kernel():
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, max_model_len=4096))
    assert ladder.step_down(failed(Failure.SELF_TEST)) is None


def test_strict_gives_nothing_up():
    ladder = ladder_of(strict=True)
    ladder.note(Trial(variant=MAIN, reason="best", max_model_len=4096))
    assert ladder.step_down(OUT_OF_MEMORY) is None


@pytest.mark.parametrize("error", [EngineStartError("no such file"), EngineDeadError("died")])
def test_what_no_other_attempt_would_mend_ends_it(error):
    ladder = ladder_of()
    ladder.note(Trial(variant=MAIN, reason="best", max_model_len=4096))
    assert ladder.step_down(error) is None


def test_only_the_second_kill_in_a_row_counts_as_want_of_memory():
    ladder = ladder_of()
    killed = EngineKilledError("SIGKILL")
    ladder.note(Trial(variant=MAIN, max_model_len=4096))
    assert ladder.step_down(killed) is None
    ladder.note_success()
    assert ladder.step_down(killed) is None
    assert ladder.step_down(killed) == "context 2048 instead of 4096 tokens: out of memory"


def test_a_kill_before_anything_was_told_changes_nothing():
    ladder = ladder_of()
    assert [ladder.step_down(EngineKilledError("SIGKILL")) for _ in range(3)] == [None] * 3
