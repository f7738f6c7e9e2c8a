"""What commands that plan have in common: the request as options put it, and its result.

What no option says is taken from the settings, so that a plan for this machine is what
`tetrad serve` would make of it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from service.settings import unless_auto

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loaders.catalogue.variants import Variant
    from loaders.planning.accelerators import Devices
    from loaders.planning.plan import PlannedVariants, Prefer, VariantChoice
    from service.settings import Auto, Settings

NEEDS_SEVERAL = "It needs more than one GPU; `tetrad serve` runs on one today and cannot do this."

_MAX_CONTEXT = 10**9

GpuOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="What it shall run on: `A10G`, `2xA10G:24GB`, `NAME:SIZE`, `cpu:16GB`; `auto` is what "
        "`tetrad serve` would use here. Kernels and their memory follow from the GPU's compute "
        "capability, where the table knows it.",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        "--max-model-len",
        metavar="TOKENS",
        help="Longest prompt and answer together; when absent `max_model_len`. `auto` is 4096, or"
        " less where the model was made for less.",
    ),
]
UsersOption = Annotated[
    int | None,
    typer.Option(min=1, max=100_000, help="Sequences of that length at once; when absent `users`."),
]
PreferOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="`quality`, `speed` or `memory`, among what fits; when absent `prefer`.",
    ),
]


def read_context(text: str | None) -> int | Auto | None:
    """Read what the option `--context` says. Raises typer.BadParameter."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    with contextlib.suppress(ValueError):
        if 0 < (tokens := int(text)) <= _MAX_CONTEXT:
            return tokens
    raise typer.BadParameter(
        f"--context is {text[:40]!r}; give a number of tokens from 1 to {_MAX_CONTEXT}, or auto"
    )


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is asked of a plan; None where the settings decide."""

    gpu: str
    context: int | Auto | None
    users: int | None
    prefer: str | None


@dataclass(frozen=True, slots=True)
class PlanResult:
    """Every variant's plan, and which one to take."""

    devices: Devices
    prefer: Prefer
    planned: PlannedVariants
    choice: VariantChoice
    needs_several_gpus: bool  # the chosen one; an engine runs on one


def make_plan(
    plan_request: PlanRequest, settings: Settings, find: Callable[[], Sequence[Variant]]
) -> PlanResult:
    """Plan variants and choose one; `find` lists them, once the request is known to make sense.

    Raises LoadError.
    """
    from loaders.planning.accelerators import parse_gpus
    from loaders.planning.plan import choose, plan_variants
    from loaders.records import Records

    prefer = _preference(plan_request.prefer or settings.prefer)
    devices = parse_gpus(plan_request.gpu, engine_device=settings.device)
    context = plan_request.context or settings.max_model_len
    planned = plan_variants(
        find(),
        devices,
        context=unless_auto(context),
        users=plan_request.users or settings.users,
        max_num_seqs=settings.max_num_seqs,
        kv_dtype=unless_auto(settings.kv_cache_dtype),
        records=Records(settings.cache_dir),
        gpu_share=devices.lasting_share(settings.gpu_memory_utilization),
    )
    choice = choose(planned, prefer)
    needs_several = devices.count > 1 and not _fits_one(choice, settings)
    return PlanResult(devices, prefer, planned, choice, needs_several)


def _fits_one(choice: VariantChoice, settings: Settings) -> bool:
    """Whether one of the devices holds the chosen variant, with the context that it gets."""
    from loaders.planning.plan import plan_variant
    from loaders.records import Records

    if choice.plan is None:
        return True  # nothing was chosen, so nothing needs more
    one = choice.plan.devices.one
    return plan_variant(
        choice.plan.variant,
        one,
        context=choice.context,
        users=choice.plan.demand.users,
        max_num_seqs=settings.max_num_seqs,
        kv_dtype=unless_auto(settings.kv_cache_dtype),
        records=Records(settings.cache_dir),
        gpu_share=one.lasting_share(settings.gpu_memory_utilization),
    ).fits


def _preference(text: str) -> Prefer:
    from loaders.errors import InvalidPreferenceError
    from loaders.planning.plan import PREFERENCES

    for preference in PREFERENCES:
        if text == preference:
            return preference
    raise InvalidPreferenceError(f"prefer is {text!r}; choose one of {', '.join(PREFERENCES)}")
