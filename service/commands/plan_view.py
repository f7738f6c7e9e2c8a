"""Shows a plan: as a table for people, as a document for programs.

The document, with sizes in bytes:

    {"repo", "asked": {"context", "users", "kv_cache_dtype", "prefer"},
     "devices": {"kind", "name", "count", "memory", "bandwidth", "compute_capability"},
                                                           bandwidth in bytes a second; "8.6"
     "choice": {"variant", "context", "fits", "needs_several_gpus", "reason"} or null,  "reason",
     "variants": [{"variant", "revision", "file", "commit", "kind", "chosen", "fits", "lacks",
                   "memory": [{"weights", "kv_cache", "activations", "workspace", "graphs",
                               "graph_launches", "slots", "context", "total"}],  one a device
                   "kv_cache_fp8", "fits_with_fp8",
                   "max_context": {"1", "4", "16", …},              by users; 0 where none fits
                   "model_max_context", "backend", "backend_reason",
                   "kernels": [{"kernel", "layers", "reasons", "max_packed_rows"}],   above these
                                                       rows it dequantises; null: one way for any
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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loaders.planning.plan import SHOWN_USERS
from service.commands.engines_view import engine_lines
from service.commands.plan_request import NEEDS_SEVERAL
from service.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loaders.catalogue.variants import Variant
    from loaders.memory.device import MemoryBreakdown
    from loaders.planning.accelerators import Devices
    from loaders.planning.plan import Plan, PlannedVariants, VariantChoice
    from service.commands.plan_request import PlanResult

_WIDTH_OF_FILES = 140  # where no terminal says how wide it is
_WIDE = 120  # below it the table leaves out what the lines below it say anyway
_PARTS = (
    ("weights", "weights, as the kernels hold them"),
    ("kv_cache", "KV cache"),
    ("activations", "activations at the largest prefill"),
    ("workspace", "workspace of the kernels"),
    ("graphs", "memory that CUDA graphs share"),
    ("graph_launches", "CUDA graphs themselves"),
    ("slots", "sampling's tables, once a request asks for them"),
    ("context", "process, or CUDA context"),
)
_ON_CUDA_ONLY = ("graphs", "graph_launches", "slots")


def as_table(result: PlanResult) -> str:
    """Render what people read: the table, the choice, why the others lost, what is unverified."""
    planned = result.planned
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _WIDTH_OF_FILES
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, highlight=False)
    if planned.plans:
        console.print(_table(planned, result.choice, is_wide=width >= _WIDE))
    for line in _lines(result):
        console.print(Text(line), soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _table(planned: PlannedVariants, choice: VariantChoice, *, is_wide: bool) -> Table:
    demand = planned.plans[0].demand
    kept = f"; keys and values in {demand.kv_dtype}" if demand.kv_dtype else ""
    title = f"{demand.context} tokens x {_users(demand.users)}{kept}; memory in GB of 10^9 bytes"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        if is_wide or column.is_always_shown:
            justify: Literal["right", "left"] = "right" if column.is_number else "left"
            table.add_column(column.heading, justify=justify, overflow="fold")
    for plan in planned.plans:
        is_chosen = plan is choice.plan
        cells = [
            Text("*" if is_chosen and column.heading == "" else column.cell(plan))
            for column in _COLUMNS
            if is_wide or column.is_always_shown
        ]
        table.add_row(*cells, style="bold" if is_chosen else None)
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cell: Callable[[Plan], str]
    is_number: bool = True
    is_always_shown: bool = True


def _longest_context(users: int) -> _Column:
    return _Column(f"x{users}", lambda plan: str(plan.max_context[users] or "-"))


_COLUMNS = (
    _Column("", lambda plan: "", is_number=False),  # noqa: ARG005
    _Column("variant", lambda plan: name_of(plan.variant), is_number=False),
    _Column("weights", lambda plan: _gb(sum(s.weights for s in plan.memory))),
    _Column("KV", lambda plan: _gb(sum(s.kv_cache for s in plan.memory)), is_always_shown=False),
    _Column("KV fp8", lambda plan: _gb(plan.kv_cache_fp8), is_always_shown=False),
    _Column("all", lambda plan: _gb(sum(s.total for s in plan.memory))),
    _Column("fits", lambda plan: _fits(plan), is_number=False),
    *(_longest_context(users) for users in SHOWN_USERS),
    _Column("kernel", lambda plan: plan.backend, is_number=False, is_always_shown=False),
    _Column(
        "expected quality", lambda plan: _quality(plan), is_number=False, is_always_shown=False
    ),
)


def _fits(plan: Plan) -> str:
    if plan.demand.context > plan.model_max_context:
        return f"made for {plan.model_max_context}"
    return "yes" if plan.fits else f"lacks {_gb(plan.shortfall)}"


def _quality(plan: Plan) -> str:
    perplexity = plan.quality.perplexity
    return printable(plan.quality.words) + (f"; perplexity {perplexity:.2f}" if perplexity else "")


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


def _lines(result: PlanResult) -> Iterator[str]:
    planned, choice = result.planned, result.choice
    yield "x1, x4, x16: the longest context in tokens that fits for so many users at once."
    yield from _unverified(planned)
    yield ""
    if choice.plan is None:
        yield f"Nothing to take for {printable(str(result.devices))}: {printable(choice.reason)}"
    else:
        advice = "Nearest is" if choice.is_shortened else "Take"
        yield f"{advice} {name_of(choice.plan.variant)}: {printable(choice.reason)}"
    if result.needs_several_gpus:
        yield NEEDS_SEVERAL
    qualities = {id(plan.variant): plan.quality.words for plan in planned.plans}
    for loser in choice.losers:
        quality = qualities.get(id(loser.variant))
        # One that does not fit says by how much; narrow tables leave out how good it is.
        more = f"; {quality}" if quality and not loser.names_quality else ""
        yield f"  not {name_of(loser.variant)}: {printable(loser.reason + more)}"
    if choice.plan is not None:
        yield from _details(choice.plan)
    if planned.plans:
        yield from _engines(planned)


def _unverified(planned: PlannedVariants) -> Iterator[str]:
    """Say whose memory no device has confirmed; every number of a row hangs on it."""
    names = [name_of(plan.variant) for plan in planned.plans if plan.measured is None]
    if names:
        whose = "all" if len(names) == len(planned.plans) else ", ".join(names)
        yield f"Memory is unverified (predicted, not measured on such a device) of: {whose}."


def _details(plan: Plan) -> Iterator[str]:
    yield ""
    where = f"{plan.demand.context} tokens x {_users(plan.demand.users)}"
    yield f"What {name_of(plan.variant)} takes of {printable(str(plan.devices))} at {where}:"
    for number, share in enumerate(plan.memory):
        if len(plan.memory) > 1:
            yield f"  device {number}:"
        yield from _breakdown(share)
    yield from _kernels(plan)
    if plan.max_tokens_per_s is not None:
        far = ", the reference by far not" if "reference" in plan.backend.split("+") else ""
        yield (
            f"  speed: at most {plan.max_tokens_per_s:.0f} tokens/s for one user, by memory"
            f" bandwidth alone; no kernel reaches it{far}"
        )
    for remark in plan.remarks:
        yield f"  {printable(remark)}"


def _kernels(plan: Plan) -> Iterator[str]:
    if not plan.kernels:
        yield f"  kernel: {plan.backend} ({printable(plan.backend_reason)})"
    for use in plan.kernels:
        reasons = printable("; ".join(use.reasons))
        yield f"  kernel: {use.kernel} runs {use.num_layers} layers ({reasons})"


def _breakdown(share: MemoryBreakdown) -> Iterator[str]:
    for field, words in _PARTS:
        if not getattr(share, field) and field in _ON_CUDA_ONLY:
            continue
        yield f"  {_gb(getattr(share, field)):>8} GB  {words}"
    yield f"  {_gb(share.total):>8} GB  all"


def _engines(planned: PlannedVariants) -> Iterator[str]:
    yield ""
    yield "Loads in (as of 2026-11; unknown means that nobody here tried):"
    names = [name_of(plan.variant) for plan in planned.plans]
    for line in engine_lines(names, [plan.engines for plan in planned.plans]):
        yield f"  {printable(line)}"


def name_of(variant: Variant) -> str:
    """Name a variant inside its repository."""
    return printable(variant.file or variant.revision or variant.repo)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}"


def as_document(repo: str, result: PlanResult) -> dict[str, Any]:
    """Build the document that the module describes, all but its exit code."""
    planned, choice, devices = result.planned, result.choice, result.devices
    why = {id(loser.variant): loser.reason for loser in choice.losers}
    demand = planned.plans[0].demand if planned.plans else None
    chosen = choice.plan
    return {
        "repo": repo,
        "asked": {
            "context": demand and demand.context,
            "users": demand and demand.users,
            "kv_cache_dtype": demand and (demand.kv_dtype or "auto"),
            "prefer": result.prefer,
        },
        "devices": _devices(devices),
        "choice": chosen
        and {
            "variant": chosen.variant.spec,
            "context": choice.context,
            "fits": chosen.fits,
            "needs_several_gpus": result.needs_several_gpus,
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


def _devices(devices: Devices) -> dict[str, Any]:
    bandwidth, capability = devices.bandwidth, devices.compute_capability
    return {
        "kind": devices.kind,
        "name": devices.name,
        "count": devices.count,
        "memory": devices.memory_bytes,
        "bandwidth": None if bandwidth is None else bandwidth * 10**9,
        "compute_capability": capability and ".".join(map(str, capability)),
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
        "kernels": [
            {
                "kernel": use.kernel,
                "layers": use.num_layers,
                "reasons": list(use.reasons),
                "max_packed_rows": use.max_packed_rows,
            }
            for use in plan.kernels
        ],
        "quality": asdict(plan.quality),
        "bytes_per_token": plan.bytes_per_token,
        "max_tokens_per_s": plan.max_tokens_per_s,
        "verified": plan.measured is not None,
        "remarks": list(plan.remarks),
        "engines": [
            {"engine": v.engine, "version": v.version, "loads": v.can_load, "why": v.why}
            for v in plan.engines
        ],
    }
