"""How often an engine is started again, and after which wait."""

from __future__ import annotations

from service.variants.restarts import FIRST_DELAY_S, HEALTHY_S, LONGEST_DELAY_S, RestartPolicy


def test_delay_doubles_while_no_engine_comes_to_serve():
    policy = RestartPolicy(max_restarts=20)
    delays = [policy.delay_after(0.0) for _ in range(10)]
    assert delays[:4] == [FIRST_DELAY_S * factor for factor in (1, 2, 4, 8)]
    assert delays[-1] == LONGEST_DELAY_S
    assert policy.delay_after(1.0) == FIRST_DELAY_S


def test_engine_is_given_up_after_its_restarts_but_a_healthy_one_counts_anew():
    policy = RestartPolicy(max_restarts=2)
    assert policy.is_first_engine
    assert policy.delay_after(1.0) is not None
    assert not policy.is_first_engine
    assert policy.delay_after(1.0) is not None
    assert policy.delay_after(HEALTHY_S) is not None
    assert policy.delay_after(1.0) is not None
    assert policy.delay_after(1.0) is None


def test_no_restarts_means_none():
    assert RestartPolicy(max_restarts=0).delay_after(HEALTHY_S) is None
