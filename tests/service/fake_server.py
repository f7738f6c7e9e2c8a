"""A server process with a fake engine: `python -m tests.service.fake_server '{"delay_s": 0.1}'`.

Options: delay_s (of a token), load_s, drain_limit_s, stall_limit_s, load_fails (a message), port.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from loaders.errors import LoadError
from service.api.application import create_app
from service.lifecycle import Lifecycle
from service.logs import set_up_logs
from service.server import Server, listen, url_of
from service.settings import Settings
from tests.service.fakes import ByteTokenizer, FakeEngine, api_context, says, served_model

if TYPE_CHECKING:
    from service.served_model import ServedModel


def main() -> int:
    options = json.loads(sys.argv[1])
    set_up_logs(Settings(log_format="json"))
    tokenizer = ByteTokenizer()
    engine = FakeEngine(
        says(tokenizer, "word " * 5000), max_model_len=100_000, delay_s=options.get("delay_s", 0)
    )

    def load() -> ServedModel:
        time.sleep(options.get("load_s", 0))
        if reason := options.get("load_fails"):
            raise LoadError(reason)
        if options.get("load_breaks"):
            raise ZeroDivisionError
        return served_model(engine, tokenizer)

    lifecycle = Lifecycle()
    context = api_context(lifecycle, stall_limit_s=options.get("stall_limit_s", 30))
    server = Server(
        create_app(context, None),
        lifecycle,
        load=load,
        drain_limit_s=options.get("drain_limit_s", 90),
    )
    if seconds := options.get("engine_dies_after_s"):
        import threading

        threading.Timer(seconds, setattr, (engine, "is_alive", False)).start()
    listener = listen("127.0.0.1", 0, stall_limit_s=options.get("stall_limit_s", 30))
    print(url_of(listener), flush=True)
    return server.run(listener)


if __name__ == "__main__":
    sys.exit(main())
