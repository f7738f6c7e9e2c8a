"""The phases of the process."""

from __future__ import annotations

import contextlib

import pytest

from service.errors import UnavailableError
from service.lifecycle import Lifecycle, Phase
from tests.service.fakes import ByteTokenizer, FakeEngine, says, served_model


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ByteTokenizer(), "yes"))


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


def test_loads_then_serves_then_drains(lifecycle, engine):
    assert lifecycle.phase is Phase.LOADING
    with pytest.raises(UnavailableError, match="loading"):
        lifecycle.require_served()
    served = served_model(engine, ByteTokenizer())
    lifecycle.begin_serving(served)
    assert lifecycle.phase is Phase.SERVING
    assert lifecycle.require_served() is served
    lifecycle.begin_draining()
    assert lifecycle.phase is Phase.DRAINING
    with pytest.raises(UnavailableError, match="draining"):
        lifecycle.require_served()


def test_dead_engine_is_a_failure(lifecycle, engine):
    lifecycle.begin_serving(served_model(engine, ByteTokenizer()))
    engine.is_alive = False
    assert lifecycle.phase is Phase.FAILED
    with pytest.raises(UnavailableError, match="failed"):
        lifecycle.require_served()


def test_model_that_is_loaded_while_the_process_ends_is_not_served_but_let_go(lifecycle, engine):
    lifecycle.begin_draining()
    lifecycle.begin_serving(served_model(engine, ByteTokenizer()))
    assert lifecycle.phase is Phase.DRAINING
    lifecycle.close()
    assert engine.is_stopped


def test_open_requests_are_counted_also_when_they_fail(lifecycle):
    with lifecycle.request():
        assert lifecycle.num_open_requests == 1
        with contextlib.suppress(ZeroDivisionError), lifecycle.request():
            assert lifecycle.num_open_requests == 2
            raise ZeroDivisionError
        assert lifecycle.num_open_requests == 1
    assert lifecycle.num_open_requests == 0


def test_closing_without_a_model_is_fine(lifecycle):
    lifecycle.close()
