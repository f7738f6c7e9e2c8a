"""Writes a benchmark's result: dated JSON with commit, hardware and settings."""

from __future__ import annotations

import datetime as dt
import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


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


def write(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write `results/NAME-DATE.json` and return its path."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    record = {
        "benchmark": name,
        "date": today,
        "commit": commit(),
        "hardware": hardware(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "settings": settings,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{today}.json"
    path.write_text(_to_text(record))
    return path


def _to_text(record: dict[str, Any]) -> str:
    """Return indented JSON, in which a series of numbers takes one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[([-+.\deE,\s]+)\]", lambda found: _joined(found[1]), text) + "\n"


def _joined(numbers: str) -> str:
    return f"[{' '.join(numbers.split())}]"
