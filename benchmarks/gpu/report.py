"""What the parts found, as one JSON record and as a table for people."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.limit import Ceilings, ModelShape, decode_limit, prefill_limit
from benchmarks.gpu.runner import Status
from benchmarks.gpu.targets import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.gpu.runner import Outcome

KERNELS_OF_A_MISS = 5


def new_file(folder: Path, *, is_dry: bool) -> Path:
    """Name a file of today that does not exist yet: two GPUs may be measured in a day."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"gpu-{'dry-' if is_dry else ''}{dt.datetime.now(dt.UTC).date().isoformat()}"
    number, file = 1, folder / f"{stem}.json"
    while file.exists():
        number += 1
        file = folder / f"{stem}-{number}.json"
    return file


def make_record(outcomes: Sequence[Outcome], settings: dict[str, Any]) -> dict[str, Any]:
    """Put together what is written; settings: of the run, "dry" and "commit" among them."""
    machine = _findings(outcomes, "machine")
    return {
        "benchmark": "gpu",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        # A record of the CPU must not be taken for one of a device.
        "is_dry": settings["dry"],
        "commit": settings["commit"] or machine.get("commit"),
        "hardware": machine.get("hardware"),
        "packages": machine.get("packages"),
        "settings": settings,
        "parts": {outcome.name: outcome.as_json() for outcome in outcomes},
        "speed": speed_rows(outcomes),
    }


def write(file: Path, record: dict[str, Any]) -> None:
    """Write the record."""
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def speed_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what was measured of speed, beside the device's limit where that is known."""
    speed = _findings(outcomes, "speed")
    ceilings = _ceilings(_findings(outcomes, "ceilings"))
    rows: list[dict[str, Any]] = [dict(row) for row in speed.get("rows", ())]
    if ceilings is None:
        return rows
    for row in rows:
        limit = _limit(row, ModelShape(**speed["shape"]), ceilings)
        row["limit"] = round(limit, 1)
        row["percent_of_limit"] = round(100 * row["tokens_per_s"] / limit, 2)
        target = target_of(row, ModelShape(**speed["shape"]), ceilings)
        if target is not None:
            row["target"] = round(target, 1)
    return rows


def table(outcomes: Sequence[Outcome], *, is_dry: bool) -> str:
    """Show the parts, then the speed."""
    parts = [["part", "status", "seconds", "what"]]
    parts += [
        [each.name, each.status.value, f"{each.seconds:.1f}", _what(each)] for each in outcomes
    ]
    blocks = [_columns(parts)]
    speed = [["speed", "tok/s", "limit", "% of it", "target"]]
    speed += [
        [
            _name(row),
            f"{row['tokens_per_s']:.1f}",
            _cell(row, "limit"),
            _cell(row, "percent_of_limit"),
            _cell(row, "target"),
        ]
        for row in speed_rows(outcomes)
    ]
    if len(speed) > 1:
        blocks.append(_columns(speed))
    blocks += [_peers(outcomes), _linears(outcomes)]
    blocks += [_profile(outcomes), _misses(outcomes)]
    blocks = [block for block in blocks if block]
    if is_dry:
        blocks.append("Dry: on the CPU, in tiny sizes; no figure says anything of a GPU.")
    return "\n\n".join(blocks)


def _peers(outcomes: Sequence[Outcome]) -> str:
    """Show the peers; each that did not run with its reason."""
    found = _findings(outcomes, "peers").get("rows", ())
    lines = [
        [
            f"{row['peer']}, {row['batch']} together",
            f"{row['tokens_per_s']:.1f}" if row.get("tokens_per_s") else row.get("reason", "–"),
        ]
        for row in found
    ]
    return _columns([["on the same weights, in halves", "tok/s"], *lines]) if lines else ""


def _linears(outcomes: Sequence[Outcome]) -> str:
    """Show what products cost, and from how many rows cuBLAS is quicker."""
    found = _findings(outcomes, "linears").get("rows", ())
    names = ("humming_us", "triton_us", "unpacked_us", "cublas_us")
    lines = [
        [row["shape"], str(row["rows"]), *(_us(row[name]) for name in names),
         str(row["triton_gb_per_s"])]
        for row in found
    ]  # fmt: skip
    head = ["product", "rows", "humming µs", "Triton µs", "unpack + cuBLAS µs", "cuBLAS µs"]
    head.append("Triton GB/s")
    return _columns([head, *lines]) if lines else ""


def _misses(outcomes: Sequence[Outcome]) -> str:
    """Show what fell short of its target, each with the kernels that take most of its time."""
    lines = []
    for row in speed_rows(outcomes):
        if row["tokens_per_s"] >= row.get("target", 0.0):
            continue
        lines.append(
            [_name(row), f"{row['tokens_per_s']:.1f} of {row['target']:.1f} tok/s", "", ""]
        )
        lines += _kernels(row.get("profile", ())[:KERNELS_OF_A_MISS])
    return _columns([["short of its target", "kernel", "launches", "µs"], *lines]) if lines else ""


def _profile(outcomes: Sequence[Outcome]) -> str:
    """Show where a decode step of one sequence spends its time."""
    rows = _findings(outcomes, "speed").get("rows", ())
    found = next((row.get("profile", ()) for row in rows if row.get("batch") == 1), ())
    head = ["", "kernel, of a decode step of one sequence", "launches", "µs"]
    return _columns([head, *_kernels(found[:12])]) if found else ""


def _kernels(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        ["", row["kernel"][:70], f"{row['launches_a_step']:g}", f"{row['us_a_step']:.1f}"]
        for row in found
    ]


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def all_is_well(outcomes: Sequence[Outcome]) -> bool:
    """Whether every part ran and found nothing wrong."""
    return all(outcome.status is Status.PASSED for outcome in outcomes)


def _findings(outcomes: Sequence[Outcome], name: str) -> dict[str, Any]:
    return next((each.findings for each in outcomes if each.name == name), {})


def _ceilings(findings: dict[str, Any]) -> Ceilings | None:
    """Read what limits are made of; None where that part did not get so far."""
    product = findings.get("products", {}).get("bfloat16")
    if "copy" not in findings or product is None:
        return None
    return Ceilings(findings["copy"]["gb_per_s"] * 1e9, product["tflop_per_s"] * 1e12)


def _limit(row: dict[str, Any], shape: ModelShape, ceilings: Ceilings) -> float:
    if row["what"] == "decode":
        return decode_limit(shape, row["batch"], row["context"], ceilings)
    return prefill_limit(shape, row["tokens"], ceilings)


def _name(row: dict[str, Any]) -> str:
    if row["what"] == "decode":
        return f"decode, {row['batch']} together, context {row['context']}"
    return f"prefill, {row['tokens']} tokens"


def _what(outcome: Outcome) -> str:
    told = [outcome.findings.get("summary"), outcome.reason]
    return "; ".join(part for part in told if part)


def _cell(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.1f}" if key in row else "–"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
