"""Shows a plan: as a table for people, as a document for programs.

The document, with sizes in bytes:

    {"repo", "asked": {"context", "users", "prefer"},
     "devices": {"kind", "name", "count", "memory", "bandwidth"},   bandwidth in bytes a second
     "choice": {"variant", "context", "fits", "reason"} or null,  "reason",
     "variants": [{"variant", "revision", "file", "commit", "kind", "chosen", "fits", "lacks",
                   "memory": [{"weights", "kv_cache", "activations", "workspace", "context",
                               "total"}],                           one entry a device
                   "kv_cache_fp8", "fits_with_fp8",
                   "max_context": {"1", "4", "16", …},              by users; 0 where none fits
                   "model_max_context", "backend", "backend_reason",
                   "quality": {"rank", "words", "perplexity"}, "bytes_per_token",
                   "max_tokens_per_s", "verified", "remarks",
                   "engines": [{"engine", "version", "loads", "why"}],
                   "lost_because"}],                                null for the chosen one
     "refused": [{"variant", "reason"}], "exit_code"}
"""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loaders.plan import SHOWN_USERS
from service.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.accelerators import Devices
    from loaders.device_memory import MemoryBreakdown
    from loaders.plan import Choice, Plan, PlannedVariants, Prefer
    from loaders.variants import Variant

_WIDTH_OF_FILES = 140  # where no terminal says how wide it is
_PARTS = (
    ("weights", "weights, as the kernels hold them"),
    ("kv_cache", "KV cache"),
    ("activations", "activations at the largest prefill"),
    ("workspace", "workspace of the kernels"),
    ("context", "process, or CUDA context"),
)


def as_table(devices: Devices, planned: PlannedVariants, choice: Choice) -> str:
    """Render what people read: the table, the choice, why the others lost, what is unverified."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _WIDTH_OF_FILES
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, highlight=False)
    if planned.plans:
        console.print(_table(planned, choice))
    for line in _lines(devices, planned, choice):
        console.print(Text(line), soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _table(planned: PlannedVariants, choice: Choice) -> Table:
    demand = planned.plans[0].demand
    users = "1 user" if demand.users == 1 else f"{demand.users} users"
    table = Table(
        title=f"{demand.context} tokens x {users}, GB of 10^9 bytes", title_justify="left"
    )
    table.add_column("")
    table.add_column("variant", overflow="fold")
    for heading in ("weights", "KV", "KV fp8", "all"):
        table.add_column(heading, justify="right")
    table.add_column("fits")
    for count in SHOWN_USERS:
        table.add_column(f"context x{count}", justify="right")
    table.add_column("kernel")
    table.add_column("expected quality")
    for plan in planned.plans:
        is_chosen = plan is choice.plan
        cells = [Text(cell) for cell in _cells(plan, is_chosen=is_chosen)]
        table.add_row(*cells, style="bold" if is_chosen else None)
    return table


def _cells(plan: Plan, *, is_chosen: bool) -> list[str]:
    total = sum(share.total for share in plan.memory)
    perplexity = plan.quality.perplexity
    return [
        "*" if is_chosen else "",
        name_of(plan.variant),
        _gb(sum(share.weights for share in plan.memory)),
        _gb(sum(share.kv_cache for share in plan.memory)),
        _gb(plan.kv_cache_fp8),
        _gb(total),
        "yes" if plan.fits else f"lacks {_gb(plan.shortfall)}",
        *(str(plan.max_context[count] or "-") for count in SHOWN_USERS),
        plan.backend,
        printable(plan.quality.words) + (f"; ppl {perplexity:.2f}" if perplexity else ""),
    ]


def _lines(devices: Devices, planned: PlannedVariants, choice: Choice) -> Iterator[str]:
    yield ""
    if choice.plan is None:
        yield f"Nothing to take for {printable(str(devices))}: {printable(choice.reason)}"
    else:
        yield f"Take {name_of(choice.plan.variant)}: {printable(choice.reason)}"
    for loser in choice.losers:
        yield f"  not {name_of(loser.variant)}: {printable(loser.reason)}"
    if choice.plan is not None:
        yield from _details(choice.plan)
    if planned.plans:
        yield from _engines(planned)


def _details(plan: Plan) -> Iterator[str]:
    yield ""
    where = f"{plan.demand.context} tokens x {plan.demand.users}"
    yield f"What {name_of(plan.variant)} takes of {printable(str(plan.devices))} at {where}:"
    for number, share in enumerate(plan.memory):
        if len(plan.memory) > 1:
            yield f"  device {number}:"
        yield from _breakdown(share)
    yield f"  kernel: {plan.backend} ({printable(plan.backend_reason)})"
    if plan.max_tokens_per_s is not None:
        yield (
            f"  speed: at most {plan.max_tokens_per_s:.0f} tokens/s for one user, by memory"
            " bandwidth alone; no kernel reaches it"
        )
    for remark in plan.remarks:
        yield f"  {printable(remark)}"


def _breakdown(share: MemoryBreakdown) -> Iterator[str]:
    for field, words in _PARTS:
        yield f"  {_gb(getattr(share, field)):>8} GB  {words}"
    yield f"  {_gb(share.total):>8} GB  all"


def _engines(planned: PlannedVariants) -> Iterator[str]:
    """List who else loads what; variants that the same engines load share a line."""
    groups: dict[str, list[str]] = {}
    for plan in planned.plans:
        told = ", ".join(str(verdict) for verdict in plan.engines)
        groups.setdefault(told, []).append(name_of(plan.variant))
    yield ""
    yield "Loads in (as of 2026-11; unknown means that nobody here tried):"
    for told, names in groups.items():
        yield f"  {', '.join(names)}: {printable(told)}"


def name_of(variant: Variant) -> str:
    """Name a variant inside its repository."""
    return printable(variant.file or variant.revision or variant.repo)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}"


def as_document(
    repo: str, devices: Devices, planned: PlannedVariants, choice: Choice, prefer: Prefer
) -> dict[str, Any]:
    """Build the document that the module describes, all but its exit code."""
    why = {id(loser.variant): loser.reason for loser in choice.losers}
    demand = planned.plans[0].demand if planned.plans else None
    chosen = choice.plan
    bandwidth = devices.bandwidth
    return {
        "repo": repo,
        "asked": {
            "context": demand and demand.context,
            "users": demand and demand.users,
            "prefer": prefer,
        },
        "devices": {
            "kind": devices.kind,
            "name": devices.name,
            "count": devices.count,
            "memory": devices.memory_bytes,
            "bandwidth": None if bandwidth is None else bandwidth * 10**9,
        },
        "choice": chosen
        and {
            "variant": chosen.variant.spec,
            "context": choice.context,
            "fits": chosen.fits,
            "reason": choice.reason,
        },
        "reason": choice.reason,
        "variants": [
            {**_entry(plan), "chosen": plan is chosen, "lost_because": why.get(id(plan.variant))}
            for plan in planned.plans
        ],
        "refused": [
            {"variant": refused.variant.spec, "reason": refused.reason}
            for refused in planned.refused
        ],
    }


def _entry(plan: Plan) -> dict[str, Any]:
    variant = plan.variant
    return {
        "variant": variant.spec,
        "revision": variant.revision,
        "file": variant.file,
        "commit": variant.commit,
        "kind": variant.kind.value,
        "fits": plan.fits,
        "lacks": plan.shortfall,
        "memory": [{**asdict(share), "total": share.total} for share in plan.memory],
        "kv_cache_fp8": plan.kv_cache_fp8,
        "fits_with_fp8": plan.shortfall_fp8 == 0,
        "max_context": {str(users): tokens for users, tokens in sorted(plan.max_context.items())},
        "model_max_context": plan.model_max_context,
        "backend": plan.backend,
        "backend_reason": plan.backend_reason,
        "quality": asdict(plan.quality),
        "bytes_per_token": plan.bytes_per_token,
        "max_tokens_per_s": plan.max_tokens_per_s,
        "verified": plan.measured is not None,
        "remarks": list(plan.remarks),
        "engines": [
            {"engine": v.engine, "version": v.version, "loads": v.answer, "why": v.why}
            for v in plan.engines
        ],
    }
