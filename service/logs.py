"""Sets up the log: one line an event on standard error, for people or as JSON.

Whatever libraries log through `logging` comes out in the same form. The line of each request is
`service.observation.request_log`'s; keys, prompts and answers are never logged.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

from service.terminal import ERASE_LINE, use_progress_line

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

    from service.observation.line_writer import LineWriter
    from service.settings import WorkerSettings

FLUSH_LIMIT_S = 1.0  # at the process's end; nobody may read what is written
# Chatty below warnings, and none of it is about serving.
QUIET = ("asyncio", "filelock", "httpcore", "httpcore2", "httpx", "httpx2", "urllib3", "uvicorn")
# What it warns of is a form that cannot be read, which the request that sent it is told.
SILENT = ("python_multipart",)


def set_up_logs(
    settings: WorkerSettings, *, writer: LineWriter | None = None, **always: object
) -> None:
    """Send every log line to standard error in the form the settings ask for.

    writer: writes them, and draws progress, so that nobody waits; None does each at once. always:
    what every line says, such as whose it is where several processes write.
    """

    def add_always(_logger: object, _method: str, event: EventDict) -> EventDict:
        return {**event, **always}

    logging.raiseExceptions = False  # a full disk or a closed pipe must not fail a request
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        add_always,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    is_drawn = use_progress_line(
        wanted=settings.log_format == "console", draw=None if writer is None else writer.draw
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(as_json=settings.log_format == "json"),
            *([_over_progress] if is_drawn else []),
        ],
    )
    handler = logging.StreamHandler(sys.stderr) if writer is None else _Handler(writer)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Handler(logging.Handler):
    """Hands finished lines to a writer."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def flush(self) -> None:
        self._writer.flush(FLUSH_LIMIT_S)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except Exception:  # as every handler: a line that cannot be formed fails nothing else
            self.handleError(record)


def _renderers(*, as_json: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # The default formatter prints local variables, and with them prompts and keys.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _over_progress(_logger: object, _method: str, line: Any) -> str:
    """Put a line where a bar may be drawn, by this process or another on the same terminal."""
    return f"{ERASE_LINE}{line}"
