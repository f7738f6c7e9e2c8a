"""The phases of the process."""

from __future__ import annotations

import contextlib

import pytest

from service.errors import UnavailableError
from service.server.lifecycle import Lifecycle, Phase
from tests.service.fakes import ByteTokenizer, FakeEngine, FakeModels, says, served_model


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ByteTokenizer(), "yes"))


@pytest.fixture
def lifecycle(engine: FakeEngine) -> Lifecycle:
    return Lifecycle(FakeModels(served_model(engine, ByteTokenizer())))


def test_phase_is_that_of_the_models_until_the_process_drains(lifecycle, engine):
    assert Lifecycle(FakeModels(None)).phase is Phase.LOADING
    assert lifecycle.phase is Phase.SERVING
    lifecycle.require_open()
    lifecycle.begin_draining()
    assert lifecycle.phase is Phase.DRAINING
    with pytest.raises(UnavailableError, match="draining"):
        lifecycle.require_open()


def test_models_without_hope_are_a_failure(lifecycle, engine):
    assert not lifecycle.is_hopeless
    engine.is_alive = False
    assert lifecycle.phase is Phase.FAILED
    assert lifecycle.is_hopeless


def test_open_requests_are_counted_also_when_they_fail(lifecycle):
    with lifecycle.request():
        assert lifecycle.num_open_requests == 1
        with contextlib.suppress(ZeroDivisionError), lifecycle.request():
            assert lifecycle.num_open_requests == 2
            raise ZeroDivisionError
        assert lifecycle.num_open_requests == 1
    assert lifecycle.num_open_requests == 0
