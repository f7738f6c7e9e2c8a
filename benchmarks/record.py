"""Writes a benchmark's result: dated JSON with commit, hardware and settings."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.measured.machine import masks, processor_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, its cores in use, accelerators."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cpu_model": processor_numbers(),
        "masks": masks(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def without_folders(text: str) -> str:
    """Return a text with the names of files in place of their absolute paths."""
    return re.sub(r"(?<![\w./])/(?!/)[^\s:]*/", "", text)


def commit() -> str:
    """Name the commit that is measured; "+changes" where files differ from it."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def commit_of(checkout: Path | None) -> str | None:
    """Name the commit of another checkout, where there is one."""
    if checkout is None:
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(
    name: str, settings: dict[str, Any], rows: list[dict[str, Any]], path: Path | None = None
) -> Path:
    """Write `results/NAME-DATE.json`, or the file that is named, and return its path."""
    return write_rows(head_of(name, settings), rows, path)


def head_of(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what stands above the rows: what is measured now, and on what."""
    return {
        "benchmark": name,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "settings": settings,
    }


def write_rows(
    head: dict[str, Any], rows: Sequence[dict[str, Any]], path: Path | None = None
) -> Path:
    """Write rows below their head as `write` does; whoever reads finds the old file or the new."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{head['benchmark']}-{head['date']}.json"
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(_to_text({**head, "rows": list(rows)}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _to_text(record: dict[str, Any]) -> str:
    """Return indented JSON, in which a series of numbers takes one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[([-+.\deE,\s]+)\]", lambda found: _joined(found[1]), text) + "\n"


def _joined(numbers: str) -> str:
    return f"[{' '.join(numbers.split())}]"
