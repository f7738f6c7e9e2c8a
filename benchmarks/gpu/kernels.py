"""Part "kernels": every Triton kernel beside its reference, in the sizes of real models.

What is compared (`kernel_cases`) is what the engine and the loaders call. Memory that kernels are
given is filled with NaN before, so that what one forgets to write, or reads without having to,
shows. Well over a hundred kernels are compiled on the way, seconds each, so several processes
share the cases; one that an illegal access ends takes no other with it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.kernel_cases import case_groups
from engine.execution.device_faults import find_fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.gpu.context import Context
    from benchmarks.gpu.kernel_cases import Case

POISON_BYTES, DRY_POISON_BYTES = 2**30, 2**20
# Below a mebibyte PyTorch gives memory from segments of their own.
SMALL_POISON_BYTES, NUM_SMALL = 2**19, 64
MAX_SHARES = 8
POLL_S = 0.5
KEPT_FAILURES = 40


def run(context: Context) -> None:
    """Compare; raises `CheckFailedError` that names what is wrong."""
    if context.share is not None:
        _compare_share(context, *context.share)
        return
    if context.is_dry or context.is_small:
        _compare_share(context, 0, 1)
        _judge(context, [context.findings_file])
        return
    # A process each half of the cores: compiling takes a second one now and then.
    count = max(1, min(MAX_SHARES, (os.cpu_count() or 1) // 2))
    _judge(context, _run_shares(context, count))


def _run_shares(context: Context, count: int) -> list[Path]:
    """Have so many processes compare a share each; return the files of what they found."""
    command = [sys.executable, "-m", "benchmarks.gpu.part_process", "kernels"]
    files = [context.findings_file.with_suffix(f".{number}.json") for number in range(count)]
    processes = [
        subprocess.Popen([*command, str(file), "--share", f"{number}/{count}"])
        for number, file in enumerate(files)
    ]
    # Kept now and then: this process may be ended before they are.
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
        context.save(**_merged(files))
    context.save(**_merged(files))
    for number, process in enumerate(processes):
        if process.returncode:
            context.tell(f"share {number} of {count} ended with {process.returncode}")
    return files


def _judge(context: Context, files: Sequence[Path]) -> None:
    found = _merged(files)
    context.save(**found)
    wrong = [row["name"] for row in found["failures"]] + found["unfinished"]
    if wrong:
        raise CheckFailedError(f"wrong: {', '.join(wrong[:8])}")
    if not found["num_cases"]:
        raise CheckFailedError("nothing was compared")


def _merged(files: Sequence[Path]) -> dict[str, Any]:
    """Put together what the shares have found so far."""
    shares = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    failures = [row for share in shares for row in share.get("failures", ())]
    worst = max(
        (share["worst"] for share in shares if share.get("worst")),
        key=lambda row: row["error"] / row["allowed"],
        default=None,
    )
    num_cases = sum(share.get("num_cases", 0) for share in shares)
    # What was under way in a process that is not done: where it has ended, that ended it.
    unfinished = [share.get("running", "the start") for share in shares if not share.get("is_done")]
    nearest = "" if worst is None else f"; nearest to its bound: {worst['name']}"
    return {
        "num_cases": num_cases,
        "num_shares": len(files),
        "failures": failures[:KEPT_FAILURES],
        "num_failures": len(failures),
        "unfinished": unfinished,
        "worst": worst,
        "seconds_by_share": [share.get("share_s") for share in shares],
        "summary": f"{num_cases} cases, {len(failures)} wrong{nearest}",
    }


def _compare_share(context: Context, number: int, count: int) -> None:
    """Compare every so-manieth group; what is found is kept after each case."""
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for group in case_groups(context)[number::count]:
        for case in group():
            context.save(running=case.name)
            rows.append(_compare(case, context))
            _keep(context, rows)
            if rows[-1]["is_fatal"]:
                raise CheckFailedError(f"the device is lost after {case.name}")
        context.tell(f"{len(rows)} cases")
    context.save(is_done=True, share_s=round(time.perf_counter() - began, 1))


def _keep(context: Context, rows: Sequence[dict[str, Any]]) -> None:
    failures = [row for row in rows if not row["passed"]]
    passed = [row for row in rows if row["passed"]]
    worst = max(passed, key=lambda row: row["error"] / row["allowed"], default=None)
    context.save(num_cases=len(rows), failures=failures[:KEPT_FAILURES], worst=worst)


def _compare(case: Case, context: Context) -> dict[str, Any]:
    row: dict[str, Any] = {"name": case.name, "allowed": case.allowed, "is_fatal": False}
    try:
        error = _error(case, context)
    except Exception as problem:  # of one kernel: the others are compared all the same
        reason = f"{type(problem).__name__}: {problem}"[:500]
        is_fatal = find_fault(problem) is not None
        return {**row, "error": None, "passed": False, "reason": reason, "is_fatal": is_fatal}
    if not math.isfinite(error):
        return {**row, "error": None, "passed": False, "reason": "not all of it is a number"}
    return {**row, "error": error, "passed": error <= case.allowed}


@torch.inference_mode()
def _error(case: Case, context: Context) -> float:
    """Return the largest error, as a share of the largest number."""
    expected = case.expected().float()
    _poison(context)
    found = case.found().float()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _poison(context: Context) -> None:
    """Leave NaN in the memory that is free."""
    num_bytes = DRY_POISON_BYTES if context.is_dry else POISON_BYTES
    sizes = [num_bytes, *[SMALL_POISON_BYTES] * (0 if context.is_dry else NUM_SMALL)]
    for made in [torch.empty(size // 4, device=context.device) for size in sizes]:
        made.fill_(float("nan"))
