"""Several variants together: which one a request means, readiness, swaps. A few fakes."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from engine.errors import QueueFullError
from engine.transport.backlog import Backlog, QueueLimits
from loaders.errors import LoadError
from service.errors import ModelNotFoundError, UnavailableError, VariantStateError
from service.server.lifecycle import Phase
from service.variants import restarts
from service.variants import variant as variant_module
from service.variants.supervisor import Supervisor
from service.variants.variant import ServedVariant, VariantRules, VariantState
from tests.service.variants.test_variant import FakeSource, run, until, until_it_is

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)


def make(name: str, **rules: object) -> ServedVariant:
    return ServedVariant(name, FakeSource(), VariantRules(**rules))


def supervise(*variants: ServedVariant, load_wait_s: float = 2) -> Supervisor:
    return Supervisor(variants, drain_limit_s=1, load_wait_s=load_wait_s)


def source_of(variant: ServedVariant) -> FakeSource:
    return variant._source


def test_requests_go_to_the_variant_they_name():
    async def test() -> None:
        one, other = make("one"), make("other")
        supervisor = supervise(one, other)
        supervisor.start()
        await until(lambda: supervisor.phase is Phase.SERVING)
        with ExitStack() as stack:
            served = await supervisor.acquire("other", stack)
            assert served.engine is source_of(other).handles[0].engine
            assert (one.status.num_requests, other.status.num_requests) == (0, 1)
            with pytest.raises(ModelNotFoundError, match="serves 'one', 'other'"):
                await supervisor.acquire("third", stack)
        assert other.status.num_requests == 0
        await supervisor.close()
        assert {status.state for status in supervisor.statuses} == {VariantState.UNLOADED}

    run(test())


def test_ready_only_while_every_required_variant_serves():
    async def test() -> None:
        one, other = make("one"), make("other", is_required=False)
        supervisor = supervise(one, other, make("third", is_on_demand=True))
        assert supervisor.phase is Phase.UNLOADED
        source_of(one).may_serve.clear()
        supervisor.start()
        assert supervisor.phase is Phase.LOADING
        source_of(one).may_serve.set()
        await until(lambda: supervisor.phase is Phase.SERVING)
        source_of(other).handles[0].die("SIGKILL")
        assert supervisor.phase is Phase.SERVING
        await until_it_is(other, VariantState.SERVING)
        source_of(one).handles[0].die("SIGKILL")
        assert supervisor.phase is Phase.RESTARTING
        await until(lambda: supervisor.phase is Phase.SERVING)
        one.drain()
        assert supervisor.phase is Phase.DRAINING
        one.load()
        assert supervisor.phase is Phase.SERVING
        await one.unload(drain_limit_s=1, for_good=True)
        assert supervisor.phase is Phase.UNLOADED
        await supervisor.close()

    run(test())


def test_failed_variant_leaves_hope_while_another_can_answer():
    async def test() -> None:
        one, other = make("one"), make("other")
        source_of(one).failures = [ZeroDivisionError("x")]
        supervisor = supervise(one, other)
        supervisor.start()
        await until_it_is(one, VariantState.FAILED)
        await until_it_is(other, VariantState.SERVING)
        assert supervisor.phase is Phase.FAILED
        assert not supervisor.is_hopeless
        with ExitStack() as stack:
            assert await supervisor.acquire("other", stack)
            with pytest.raises(UnavailableError, match="one has failed"):
                await supervisor.acquire("one", stack)
        await supervisor.close()

    run(test())


def test_nothing_but_failures_is_hopeless():
    async def test() -> None:
        one = make("one")
        source_of(one).failures = [ZeroDivisionError("x")]
        supervisor = supervise(one)
        supervisor.start()
        await until(lambda: supervisor.is_hopeless)
        assert supervisor.phase is Phase.FAILED
        await supervisor.close()

    run(test())


def test_variant_on_demand_comes_with_the_first_request():
    async def test() -> None:
        one = make("one", is_on_demand=True, idle_unload_s=0.1)
        supervisor = supervise(one)
        supervisor.start()
        assert one.state is VariantState.UNLOADED
        for number in (1, 2):
            with ExitStack() as stack:
                assert await supervisor.acquire("one", stack)
                await asyncio.sleep(0.15)
                assert one.state is VariantState.SERVING  # in use
            assert len(source_of(one).handles) == number
            await until_it_is(one, VariantState.UNLOADED)
        await supervisor.close()

    run(test())


def test_request_does_not_wait_for_ever_for_a_variant_on_demand():
    async def test() -> None:
        one = make("one", is_on_demand=True)
        source_of(one).may_serve.clear()
        supervisor = supervise(one, load_wait_s=0.1)
        supervisor.start()
        with ExitStack() as stack, pytest.raises(UnavailableError, match="one is loading"):
            await supervisor.acquire("one", stack)
        await supervisor.close()

    run(test())


def test_variant_that_was_unloaded_by_hand_stays_so():
    async def test() -> None:
        one = make("one", is_on_demand=True)
        supervisor = supervise(one)
        supervisor.start()
        with ExitStack() as stack:
            await supervisor.acquire("one", stack)
        supervisor.unload("one")
        await until_it_is(one, VariantState.UNLOADED)
        with ExitStack() as stack, pytest.raises(UnavailableError, match="one is unloaded"):
            await supervisor.acquire("one", stack)
        one.load()
        with ExitStack() as stack:
            assert await supervisor.acquire("one", stack)
        await supervisor.close()

    run(test())


def test_swap_loses_no_request():
    async def test() -> None:
        old, new = make("one"), make("one")
        source_of(new).may_serve.clear()
        supervisor = supervise(old)
        supervisor.start()
        await until_it_is(old, VariantState.SERVING)
        with ExitStack() as stack:
            before = await supervisor.acquire("one", stack)
            supervisor.swap(new)
            with pytest.raises(VariantStateError, match="being swapped already"):
                supervisor.swap(make("one"))
            assert [(status.state, role) for status, role in supervisor.roles()] == [
                (VariantState.SERVING, "routed"),
                (VariantState.LOADING, "incoming"),
            ]
            assert await supervisor.acquire("one", ExitStack()) is before
            source_of(new).may_serve.set()
            await until(lambda: old.state is VariantState.UNLOADING)
            after = await supervisor.acquire("one", ExitStack())
            assert after.engine is source_of(new).handles[0].engine
            assert not source_of(old).handles[0].is_stopped.is_set()
            assert [role for _, role in supervisor.roles()] == ["routed", "outgoing"]
        await until(lambda: len(supervisor.variants) == 1)
        await supervisor.close()

    run(test())


def test_swap_that_fails_leaves_the_old_one():
    async def test() -> None:
        old, new = make("one"), make("one")
        source_of(new).failures = [ZeroDivisionError("x")]
        supervisor = supervise(old)
        supervisor.start()
        await until_it_is(old, VariantState.SERVING)
        supervisor.swap(new)
        with pytest.raises(VariantStateError, match="one is loaded"):
            supervisor.remove("one")
        await until(lambda: len(supervisor.variants) == 1)
        assert "ZeroDivisionError" in supervisor.failed_swap("one")
        assert (await supervisor.acquire("one", ExitStack())).engine.is_alive
        assert supervisor.phase is Phase.SERVING
        with pytest.raises(ModelNotFoundError):
            supervisor.swap(make("other"))
        await supervisor.close()

    run(test())


def test_variants_come_and_go():
    async def test() -> None:
        supervisor = supervise(make("one"))
        supervisor.start()
        supervisor.add(two := make("two"))
        with pytest.raises(VariantStateError, match="two is served already"):
            supervisor.add(make("two"))
        await until_it_is(two, VariantState.SERVING)
        with pytest.raises(VariantStateError, match="two is loaded; unload it first"):
            supervisor.remove("two")
        supervisor.unload("two")
        await until_it_is(two, VariantState.UNLOADED)
        supervisor.remove("two")
        with pytest.raises(ModelNotFoundError):
            supervisor.require("two")
        await supervisor.close()

    run(test())


def test_engine_that_a_swap_has_left_is_ended_with_the_server():
    async def test() -> None:
        old, new = make("one"), make("one")
        supervisor = Supervisor([old], drain_limit_s=60, load_wait_s=1)
        supervisor.start()
        await until_it_is(old, VariantState.SERVING)
        with ExitStack() as stack:
            await supervisor.acquire("one", stack)
            supervisor.swap(new)
            await until_it_is(old, VariantState.UNLOADING)
        await supervisor.close()
        assert source_of(old).handles[0].is_stopped.is_set()
        assert old.state is new.state is VariantState.UNLOADED

    run(test())


def test_request_does_not_lift_an_administrators_drain():
    async def test() -> None:
        one = make("one", is_on_demand=True)
        supervisor = supervise(one)
        one.drain()
        with pytest.raises(UnavailableError):
            await supervisor.acquire("one", ExitStack())
        one.load()
        assert await supervisor.acquire("one", ExitStack())
        await supervisor.close()

    run(test())


def test_a_variants_status_tells_its_aliases():
    async def test() -> None:
        supervisor = supervise(make("one", aliases=("uno", "eins")), make("two"))
        assert [status.aliases for status in supervisor.statuses] == [("uno", "eins"), ()]

    run(test())


def test_no_variant_takes_a_name_by_which_another_is_asked():
    async def test() -> None:
        supervisor = supervise(make("one", aliases=("gpt",)), make("two"))
        for wrong in (
            make("gpt"),
            make("three", aliases=("gpt",)),
            make("three", aliases=("two",)),
        ):
            with pytest.raises(VariantStateError, match=r"is a name of (one|two) already"):
                supervisor.add(wrong)
        with pytest.raises(VariantStateError, match="'gpt' is a name of one already"):
            supervisor.swap(make("two", aliases=("gpt",)))
        assert supervisor.resolve("gpt") == "one"
        supervisor.swap(make("one", aliases=("gpt", "codellama")))
        await supervisor.close()

    run(test())


def test_server_is_not_ready_while_it_tries_again_what_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(variant_module, "FAILED_REST_S", 0.05)

    async def test() -> None:
        one = make("one", is_on_demand=True)
        supervisor = supervise(one)
        supervisor.start()
        assert supervisor.phase is Phase.SERVING  # a request will have it loaded
        source_of(one).failures = [LoadError("no such kernel")]
        with pytest.raises(UnavailableError):
            await supervisor.acquire("one", ExitStack())
        source_of(one).may_serve.clear()
        await asyncio.sleep(0.06)
        trial = asyncio.create_task(supervisor.acquire("one", ExitStack()))
        await until_it_is(one, VariantState.LOADING)
        assert supervisor.phase is Phase.LOADING
        source_of(one).may_serve.set()
        await trial
        assert supervisor.phase is Phase.SERVING
        await supervisor.close()

    run(test())


def test_server_without_a_variant_left_is_not_ready():
    async def test() -> None:
        supervisor = supervise(one := make("one"))
        supervisor.start()
        await until_it_is(one, VariantState.SERVING)
        supervisor.unload("one")
        await until_it_is(one, VariantState.UNLOADED)
        assert supervisor.phase is Phase.UNLOADED
        supervisor.remove("one")
        assert supervisor.phase is Phase.EMPTY
        assert not supervisor.is_hopeless  # an administrator may bring another
        supervisor.add(two := make("two"))
        assert supervisor.phase is Phase.LOADING
        await until_it_is(two, VariantState.SERVING)
        assert supervisor.phase is Phase.SERVING
        await supervisor.close()

    run(test())


def test_variants_that_come_on_demand_are_enough_to_be_ready(monkeypatch):
    async def test() -> None:
        supervisor = supervise(one := make("one", is_on_demand=True))
        supervisor.start()
        assert supervisor.phase is Phase.SERVING
        source_of(one).may_serve.clear()
        one.load_on_demand()
        assert (one.state, supervisor.phase) == (VariantState.LOADING, Phase.SERVING)
        one.drain()
        assert supervisor.phase is Phase.LOADING
        one.load()
        source_of(one).failures = [ZeroDivisionError("x")]
        source_of(one).may_serve.set()
        await until_it_is(one, VariantState.FAILED)
        assert supervisor.phase is Phase.FAILED
        monkeypatch.setattr(variant_module, "FAILED_REST_S", 0.0)
        assert supervisor.phase is Phase.FAILED  # though the next request has it tried again
        with ExitStack() as stack:
            assert await supervisor.acquire("one", stack)
        assert supervisor.phase is Phase.SERVING
        supervisor.unload("one")
        await until_it_is(one, VariantState.UNLOADED)
        assert supervisor.phase is Phase.UNLOADED
        await supervisor.close()

    run(test())


def test_variants_that_are_not_required_make_ready_while_one_of_them_can_answer():
    async def test() -> None:
        one, other = make("one", is_required=False), make("other", is_required=False)
        source_of(one).may_serve.clear()
        source_of(other).may_serve.clear()
        source_of(one).failures = [ZeroDivisionError("x")]
        supervisor = supervise(one, other)
        supervisor.start()
        source_of(one).may_serve.set()
        await until_it_is(one, VariantState.FAILED)
        assert supervisor.phase is Phase.LOADING  # the other one gives more hope
        source_of(other).may_serve.set()
        await until_it_is(other, VariantState.SERVING)
        assert supervisor.phase is Phase.SERVING
        other.drain()
        assert supervisor.phase is Phase.DRAINING
        await supervisor.close()

    run(test())


def test_changes_of_every_variant_are_told():
    async def test() -> None:
        supervisor = supervise(one := make("one"))
        source_of(one).failures = [ZeroDivisionError("x")]
        hopeless = asyncio.create_task(supervisor.changes.until(lambda: supervisor.is_hopeless))
        supervisor.start()
        assert await hopeless
        supervisor.add(two := make("two"))
        serves = supervisor.changes.until(lambda: two.state is VariantState.SERVING)
        assert await serves
        supervisor.unload("two")
        await supervisor.changes.until(lambda: two.state is VariantState.UNLOADED)
        gone = asyncio.create_task(supervisor.changes.until(lambda: len(supervisor.variants) == 1))
        await asyncio.sleep(0)
        supervisor.remove("two")
        assert await gone
        await supervisor.close()

    run(test())


def test_request_that_comes_while_an_idle_variant_is_unloaded_has_it_loaded_again():
    async def test() -> None:
        one = make("one", is_on_demand=True)
        supervisor = supervise(one)
        with ExitStack() as stack:
            await supervisor.acquire("one", stack)
            unloading = one.unload(drain_limit_s=5, for_good=False)
            waiting = asyncio.create_task(supervisor.acquire("one", ExitStack()))
            await asyncio.sleep(0)
            assert not waiting.done()
        await unloading
        assert (await waiting).engine is source_of(one).handles[1].engine
        await supervisor.close()

    run(test())


def test_those_who_are_about_to_queue_are_taken_to_name_each_variant_alike():
    async def test() -> None:
        supervisor = supervise(make("one"), make("other"))
        supervisor.start()
        await until(lambda: supervisor.phase is Phase.SERVING)
        for variant in supervisor.variants:
            backlog = Backlog(QueueLimits(max_queued_seqs=10))
            variant.served.engine.backlog = backlog
            backlog.reserve(4)
        supervisor.require_room(num_ahead=11)  # of 12 that have room in all
        with pytest.raises(QueueFullError, match="10 sequences wait, at most 10 may"):
            supervisor.require_room(num_ahead=12)
        await supervisor.close()

    run(test())
