from __future__ import annotations

from types import SimpleNamespace

from service.batches.records import LineCounts
from service.observation.batch_metrics import batch_families


def test_what_becomes_of_lines_is_told():
    counts = LineCounts(num_running=2, num_completed=5, num_failed=1, open_lines={"a": 4, "b": 3})
    batches = SimpleNamespace(
        num_open_batches=2,
        num_stopped_batches=1,
        is_unavailable=True,
        oldest_open_s=70.5,
        counts=counts,
    )
    families = batch_families(batches)
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert told == {
        ("tetrad_batches_open",): 2,
        ("tetrad_batches_stopped",): 1,
        ("tetrad_batches_unavailable",): 1,
        ("tetrad_batch_oldest_seconds",): 70.5,
        ("tetrad_batch_lines", "waiting"): 5,
        ("tetrad_batch_lines", "running"): 2,
        ("tetrad_batch_lines_done_total", "completed"): 5,
        ("tetrad_batch_lines_done_total", "failed"): 1,
    }
