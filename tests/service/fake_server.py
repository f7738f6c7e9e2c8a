"""A server process with a fake engine: `python -m tests.service.fake_server '{"delay_s": 0.1}'`.

Options: delay_s (of a token), load_s, drain_limit_s, stall_limit_s, load_fails (a message),
load_breaks, engine_dies_after_s.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from loaders.errors import LoadError
from service.api.application import create_app
from service.logs import set_up_logs
from service.server.lifecycle import Lifecycle
from service.server.uvicorn_server import Server, listen, url_of
from service.settings import Settings
from service.variants.supervisor import Supervisor
from service.variants.variant import ServedVariant, VariantRules
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    FakeHandle,
    api_context,
    says,
    served_model,
)

if TYPE_CHECKING:
    from engine.errors import LiveCheckError
    from service.serving.served_model import ServedModel


class FakeSource:
    """Takes its time to load, or fails, as the options say."""

    variant = MODEL
    degraded = None
    suspicions = ()

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._tokenizer = ByteTokenizer()
        self._engine = FakeEngine(
            says(self._tokenizer, "word " * 5000),
            max_model_len=100_000,
            delay_s=options.get("delay_s", 0),
        )

    def reset(self) -> None:
        """There is nothing to forget."""

    async def start(self, on_progress: object) -> FakeHandle:
        return FakeHandle(self._engine, lives_s=self._options.get("engine_dies_after_s"))

    async def wait_ready(self, handle: FakeHandle) -> ServedModel:
        await asyncio.sleep(self._options.get("load_s", 0))
        if reason := self._options.get("load_fails"):
            raise LoadError(reason)
        if self._options.get("load_breaks"):
            raise ZeroDivisionError
        return served_model(self._engine, self._tokenizer)

    def fall_back(self, error: LiveCheckError) -> str:
        return str(error)

    async def close(self) -> None:
        """Nothing is kept."""


def main() -> None:
    options = json.loads(sys.argv[1])
    set_up_logs(Settings(log_format="json"))
    variant = ServedVariant(MODEL, FakeSource(options), VariantRules(max_restarts=0))
    drain_limit_s = options.get("drain_limit_s", 90)
    supervisor = Supervisor([variant], drain_limit_s=drain_limit_s, load_wait_s=1)
    lifecycle = Lifecycle(supervisor)
    context = api_context(lifecycle, supervisor, stall_limit_s=options.get("stall_limit_s", 30))
    server = Server(create_app(context, None), lifecycle, supervisor, drain_limit_s=drain_limit_s)
    listener = listen("127.0.0.1", 0, stall_limit_s=options.get("stall_limit_s", 30))
    print(url_of(listener), flush=True)
    server.run(listener)


if __name__ == "__main__":
    main()
