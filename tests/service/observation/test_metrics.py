"""Which families there are, and what each is made of."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from service.observation.metrics import Metrics
from service.observation.observation import Observation
from service.variants.variant import VariantState
from service.worker_protocol.model_description import CacheDescription, MemoryReport
from tests.service.fakes import SELF_TEST
from tests.service.observation.test_engine_lives import NOTHING, Engine, replace

MODEL = {"model_name": "m", "engine": "0"}


def variant(name: str = "m", engine: Engine | None = None, **fields: Any) -> Any:
    status = {
        "state": VariantState.UNLOADED if engine is None else VariantState.SERVING,
        "num_restarts": 0,
        "load_phases": {"reading the weights": 2.5},
        "self_test": SELF_TEST,
        **fields,
    }
    memory = MemoryReport(
        device="cpu",
        predicted=30,
        measured=33,
        kv_cache=10,
        breakdown={"weights": 20, "kv_cache": 10},
    )
    cache = CacheDescription(num_blocks=100, block_size=16, dtype="float32", has_prefix_cache=True)
    served = None if engine is None else SimpleNamespace(engine=engine, memory=memory, cache=cache)
    return SimpleNamespace(name=name, status=SimpleNamespace(**status), served=served)


def values(metrics: Metrics, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def metrics_of(*variants: Any) -> Metrics:
    return Metrics(Observation(), SimpleNamespace(variants=list(variants)))


def test_an_engine_is_told_under_the_names_that_vllm_gave():
    statistics = replace(
        NOTHING,
        num_running=3,
        num_waiting=5,
        num_free_blocks=4,
        num_prompt_tokens=70,
        num_generated_tokens=80,
        num_preemptions=2,
        prefix_cache_queries=60,
        prefix_cache_hits=30,
        num_drafted_tokens=9,
        num_accepted_tokens=7,
    )
    metrics = metrics_of(variant(engine=Engine(statistics)))
    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 5,
        "vllm:kv_cache_usage_perc": 0.6,
        "vllm:prompt_tokens_total": 70,
        "vllm:generation_tokens_total": 80,
        "vllm:num_preemptions_total": 2,
        "vllm:prefix_cache_queries_total": 60,
        "vllm:prefix_cache_hits_total": 30,
        "tetrad_draft_tokens_total": 9,
        "tetrad_accepted_tokens_total": 7,
    }
    assert {name: values(metrics, name, **MODEL) for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    assert values(
        metrics,
        "vllm:cache_config_info",
        block_size="16",
        num_gpu_blocks="100",
        cache_dtype="float32",
        enable_prefix_caching="True",
        **MODEL,
    ) == [1.0]


def test_the_threads_that_compute_are_told_as_they_are_now():
    engine = Engine(replace(NOTHING, num_threads=2))
    metrics = metrics_of(variant(engine=engine))
    assert values(metrics, "tetrad_engine_threads", model_name=MODEL["model_name"]) == [2.0]
    engine.statistics = replace(NOTHING, num_threads=1)
    assert values(metrics, "tetrad_engine_threads") == [1.0]
    engine.is_alive = False
    assert values(metrics, "tetrad_engine_threads") == []


@pytest.mark.parametrize("reason", ["stop", "length", "abort", "error"])
def test_every_end_of_a_choice_is_there_from_the_start(reason):
    metrics = metrics_of(variant())
    assert values(metrics, "vllm:request_success_total", finished_reason=reason, **MODEL) == [0.0]


def test_an_unloaded_variant_keeps_its_counters_and_has_no_gauges():
    engine = Engine(replace(NOTHING, num_generated_tokens=5))
    served = SimpleNamespace(variants=[variant(engine=engine)])
    metrics = Metrics(Observation(), served)
    assert values(metrics, "vllm:generation_tokens_total", **MODEL) == [5.0]
    engine.is_alive = False
    served.variants = [variant()]
    for name in ("vllm:num_requests_running", "vllm:cache_config_info", "vllm:kv_cache_usage_perc"):
        assert values(metrics, name) == []
    assert values(metrics, "tetrad_memory_measured_bytes") == []
    assert values(metrics, "vllm:generation_tokens_total", **MODEL) == [5.0]
    assert values(metrics, "tetrad_variant_state", state="unloaded") == [1.0]
    assert values(metrics, "tetrad_variant_state", state="serving") == [0.0]
    served.variants = []
    assert values(metrics, "vllm:generation_tokens_total", **MODEL) == [5.0]


def test_restarts_are_kept_over_a_swap_and_a_removal():
    old, new = variant(num_restarts=2), variant(num_restarts=0)
    served = SimpleNamespace(variants=[old])
    metrics = Metrics(Observation(), served)

    def restarts() -> list[float]:
        return values(metrics, "tetrad_engine_restarts_total", model_name="m")

    assert restarts() == [2.0]
    served.variants = [new, old]
    assert restarts() == [2.0]
    served.variants = [new]
    new.status.num_restarts = 1
    assert restarts() == [3.0]
    served.variants = []
    assert restarts() == [3.0]


def test_a_variants_load_is_told_by_phase_and_its_memory_by_part():
    metrics = metrics_of(variant(engine=Engine()))
    (phase,) = values(metrics, "tetrad_load_phase_seconds", phase="reading the weights")
    assert phase == 2.5
    assert values(metrics, "tetrad_self_test_passed", model_name="m") == [1.0]
    assert sum(values(metrics, "tetrad_memory_predicted_bytes", model_name="m")) == 30
    assert sum(values(metrics, "tetrad_memory_measured_bytes", model_name="m")) == 33


def test_what_is_counted_of_connections_is_told_and_of_requests_that_never_were():
    metrics = metrics_of()
    assert values(metrics, "tetrad_connections_open") == []
    metrics._observation.connections = SimpleNamespace(
        num_open=3, refused=Counter({"bad_request": 2}), closed=Counter({"idle": 4})
    )
    metrics._observation.counts.rejections["bad_request", "none"] = 1
    assert values(metrics, "tetrad_connections_open") == [3.0]
    assert values(metrics, "tetrad_connections_closed_total", reason="idle") == [4.0]
    assert values(metrics, "tetrad_rejections_total", reason="bad_request", caller="none") == [3.0]


def test_a_histogram_counts_up_to_each_bound():
    engine = Engine()
    for seconds in (0.2, 0.4, 3000.0):
        engine.latencies.queue.add(seconds)
    metrics = metrics_of(variant(engine=engine))
    name = "vllm:request_queue_time_seconds"
    assert values(metrics, f"{name}_bucket", le="0.3", **MODEL) == [1.0]
    assert values(metrics, f"{name}_bucket", le="0.5", **MODEL) == [2.0]
    assert values(metrics, f"{name}_bucket", le="7680.0", **MODEL) == [3.0]
    assert values(metrics, f"{name}_bucket", le="+Inf", **MODEL) == [3.0]
    assert values(metrics, f"{name}_count", **MODEL) == [3.0]
    assert values(metrics, f"{name}_sum", **MODEL) == [pytest.approx(3000.6)]
