"""Prints what the doctor finds: lines for people, or JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING

import structlog
from rich.console import Console
from rich.text import Text

from service.commands.text import printable
from service.doctor.examine import checks, examine
from service.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.settings import Settings

TO_FIX = 1  # exit code
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FIX: "bold red"}


def doctor(settings: Settings, *, as_json: bool) -> int:
    """Examine this machine; return the exit code: 0 where nothing must be fixed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    findings = examine(checks(settings))
    return _print_json(findings) if as_json else _print_lines(findings)


def _print_json(findings: Iterable[Finding]) -> int:
    found = list(findings)
    print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    return exit_code(found)


def _print_lines(findings: Iterable[Finding]) -> int:
    console, found = Console(highlight=False, soft_wrap=True), []
    for finding in findings:
        found.append(finding)
        console.print(as_line(finding))
    return exit_code(found)


def as_line(finding: Finding) -> Text:
    """Write a finding on one line, and what mends it on the next; nothing found steers it."""
    line = Text.assemble(
        (f"{finding.level.value:<8}", _STYLES[finding.level]),
        f"{finding.name:<14}",
        printable(finding.found),
    )
    if finding.command is not None:
        line.append(f"\n{'':22}→ {printable(finding.command)}")
    return line


def exit_code(findings: Iterable[Finding]) -> int:
    """0 where nothing must be fixed."""
    return TO_FIX if any(finding.level is Level.FIX for finding in findings) else 0
