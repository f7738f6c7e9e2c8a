"""The worker's real process, whose memory is damaged while it serves.

`DAMAGE` in the environment says how, as JSON. when: a file; the damage is done once it is there.
layer, factor: whose first output has one group's scales multiplied, and by what. quiet: whether
nothing but a sign of damage brings a check about.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.worker.process import build as build_real
from service.worker.process import main

if TYPE_CHECKING:
    from engine.process.loop import BuiltEngine, ReportProgress
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

SELDOM_S = 10_000.0


def build(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    damage = json.loads(os.environ["DAMAGE"])
    built = build_real(settings, load_request, report_progress)
    if load_request.excluded_backends:
        return built  # the engine that comes after the damaged one
    if damage.get("quiet"):
        from engine.process import check_pace

        check_pace.IDLE_ROUND_S = check_pace.LONGEST_REST_S = SELDOM_S
        check_pace.SHORTEST_REST_S = SELDOM_S
    threading.Thread(target=do_damage, args=(built.engine, damage), daemon=True).start()
    return built


def do_damage(engine: Any, damage: dict[str, Any]) -> None:
    from tests.damage import scale_one_group

    while not Path(damage["when"]).exists():
        time.sleep(0.01)
    scale_one_group(engine.linears(), damage["layer"], damage["factor"])


if __name__ == "__main__":
    main(build)
