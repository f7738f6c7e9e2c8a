"""What the log says while a variant loads."""

from __future__ import annotations

from engine.transport.wire import Progress
from service.variants import loading_progress
from service.variants.loading_progress import LoadingProgress
from tests.replaced import replace_within


def test_long_phases_are_logged_by_tenths(monkeypatch):
    monkeypatch.setattr(loading_progress, "LOGGED_INTERVAL_S", 0.0)
    lines: list[dict[str, object]] = []
    monkeypatch.setattr(loading_progress.log, "info", lambda event, **fields: lines.append(fields))
    progress = LoadingProgress("m")
    for percent in (0.0, 4.0, 9.9, 10.0, 15.0, 31.0):
        progress.note(Progress("downloading", percent))
    progress.note(Progress("reading the weights"))
    assert [(line["phase"], line.get("percent")) for line in lines] == [
        ("downloading", 0),
        ("downloading", 10),
        ("downloading", 31),
        ("reading the weights", None),
    ]


def test_each_phase_of_the_last_load_has_its_duration(monkeypatch):
    now = [100.0]
    replace_within(monkeypatch, loading_progress, "time", monotonic=lambda: now[0])
    progress = LoadingProgress("m")
    for phase, took_s in [("downloading", 4), ("self-test", 1), ("downloading", 2)]:
        progress.note(Progress(phase))
        now[0] += took_s / 2
        progress.note(Progress(phase, 50))
        now[0] += took_s / 2
    progress.clear()
    now[0] += 1000
    assert progress.durations == {"downloading": 6, "self-test": 1}
    progress.note(Progress("starting"))
    now[0] += 3
    assert progress.durations == {}
    progress.clear()
    assert progress.durations == {"starting": 3}


def test_steps_of_one_phase_are_added_up_under_its_name(monkeypatch):
    now = [100.0]
    replace_within(monkeypatch, loading_progress, "time", monotonic=lambda: now[0])
    progress = LoadingProgress("m")
    for step in ("reading a file", "rounding this branch (1 of 2)", "rounding that (2 of 2)"):
        progress.note(Progress(f"building the demo: {step}"))
        now[0] += 2
    progress.note(Progress("self-test"))
    now[0] += 1
    progress.clear()
    assert progress.durations == {"building the demo": 6, "self-test": 1}


def test_the_same_phase_of_another_load_is_logged_again(monkeypatch):
    phases: list[str] = []
    monkeypatch.setattr(
        loading_progress.log, "info", lambda event, **fields: phases.append(fields["phase"])
    )
    progress = LoadingProgress("m")
    for _ in range(2):
        progress.note(Progress("starting"))
        progress.note(Progress("starting"))
        progress.clear()
        assert progress.current is None
    assert phases == ["starting", "starting"]
