"""`tetrad serve`, its engines' processes running a fake engine: see `fake_worker`.

`python -m tests.service.process_server '{"variant": "fake/model", "port": 0}'`: settings as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING

from service import app
from service.settings import load_settings
from service.variants.handles import EngineProcess

if TYPE_CHECKING:
    from service.settings import WorkerSettings
    from service.variants.handles import OnProgress
    from service.worker_protocol.load_attempt import LoadRequest


class FakeEngineProcess:
    """Starts the fake worker where the real one would be."""

    @staticmethod
    async def start(
        settings: WorkerSettings, load_request: LoadRequest, on_progress: OnProgress
    ) -> EngineProcess:
        command = ("-m", "tests.service.fake_worker")
        return await EngineProcess.start(settings, load_request, on_progress, command=command)


async def start_thread(
    settings: WorkerSettings, load_request: LoadRequest, on_progress: OnProgress
) -> app.EngineInThread:
    from tests.service.fake_worker import build

    return app.EngineInThread(settings, on_progress, partial(build, settings, load_request))


def main() -> None:
    app.EngineProcess = FakeEngineProcess
    app.start_thread = start_thread
    app.serve(load_settings(json.loads(sys.argv[1]), None))


if __name__ == "__main__":
    main()
