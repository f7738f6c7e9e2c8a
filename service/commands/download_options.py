"""What commands that fetch have in common: where from and where to, bars, errors, and Ctrl-C."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.commands.text import printable
from service.errors import SettingsError
from service.logs import set_up_logs
from service.settings import config_file_from_environment, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loaders.repository.download_progress import DownloadProgress
    from loaders.repository.hub import HubAccess

FAILED = 2
INTERRUPTED = 130  # 128 and SIGINT's number, as shells count
_LINE_EVERY_S = 5.0  # where standard error is no terminal


def hub_access(cache_dir: Path | None, token: str | None, shown: ProgressDisplay) -> HubAccess:
    """Put together where a command fetches from and to; flags win over settings."""
    from loaders.repository.hub import HubAccess, default_hub_cache

    flags = {"cache_dir": cache_dir, "hub_token": token}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(given, config_file_from_environment())
    if settings.local_files_only:
        raise SettingsError("local_files_only is set, so nothing is fetched; unset it")
    set_up_logs(settings.model_copy(update={"log_level": "warning"}))
    # The loaders log what is tried again; the client would log it once more.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HubAccess(
        cache_dir=settings.cache_dir or default_hub_cache(),
        token=settings.hub_token_value,
        on_progress=shown.on_progress,
        on_wait=shown.on_wait,
    )


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """End the command with one line where it fails, or where the user stops it."""
    from loaders.errors import LoadError

    try:
        yield
    except LoadError as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        say("stopped; what has come is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def say(line: str) -> None:
    """Tell the user something on standard error."""
    sys.stderr.write(f"tetrad: {printable(line)}\n")


@dataclass(slots=True)
class ProgressDisplay:
    """Shows one download after another: a bar in a terminal, else a line every few seconds."""

    _bars: Progress | None
    _bar: TaskID | None = None
    _title: str = ""
    _reported_at: float = 0.0

    def begin(self, title: str) -> None:
        """Start with the next download; nothing is shown until something is fetched."""
        self._title, self._bar, self._reported_at = title, None, 0.0

    def on_progress(self, progress: DownloadProgress) -> None:
        """Show how far it has come."""
        if self._bars is None:
            self._print_line(progress)
            return
        if self._bar is None:
            # What an earlier run left is no part of this one's rate.
            self._bar = self._bars.add_task(self._title, completed=progress.num_bytes_done)
        self._bars.update(
            self._bar, completed=progress.num_bytes_done, total=progress.num_bytes_total
        )

    def on_wait(self) -> None:
        """Say that another process fetches the same repository."""
        say(f"another process is downloading {self._title}; waiting for it")

    def _print_line(self, progress: DownloadProgress) -> None:
        now = time.monotonic()
        is_last = progress.num_bytes_done == progress.num_bytes_total
        if now - self._reported_at < _LINE_EVERY_S and not is_last:
            return
        self._reported_at = now
        eta = "" if progress.eta_s is None or is_last else f", {progress.eta_s:.0f} s left"
        done, total = progress.num_bytes_done / 1e6, progress.num_bytes_total / 1e6
        rate = progress.bytes_per_s / 1e6
        say(f"{self._title}: {done:.1f} of {total:.1f} MB, {rate:.1f} MB/s{eta}")


@contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Show downloads for as long as the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressDisplay(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield ProgressDisplay(bars)
