"""`tetrad plan`: which variant of a repository to take for a device, and why not the others.

Works without a GPU and downloads no weights. Exit codes: 0 it fits, 3 only with a shorter context,
4 nothing fits, or only over several GPUs, which `tetrad serve` does not do yet, 2 something was
wrong with the request.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.plan_request import (
    ContextOption,
    GpuOption,
    PlanRequest,
    PlanResult,
    PreferOption,
    UsersOption,
    make_plan,
    read_context,
)
from service.commands.repository_options import (
    CacheOption,
    OfflineOption,
    TokenOption,
    find_named_variants,
    read_settings,
    read_spec,
)
from service.commands.text import printable

if TYPE_CHECKING:
    from service.settings import Settings

FITS, WRONG_QUESTION, FITS_SHORTENED, FITS_NOT = 0, 2, 3, 4


def plan(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="Repository or folder; with `:branch`, `@commit` or `/file.gguf` only that one.",
        ),
    ],
    gpu: GpuOption = "auto",
    context: ContextOption = None,
    users: UsersOption = None,
    prefer: PreferOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    token: TokenOption = None,
    cache_dir: CacheOption = None,
    offline: OfflineOption = False,
) -> None:
    """Say which variant to take for a device, what each one needs there, and why."""
    from loaders.errors import LoadError

    settings = read_settings(token=token, cache_dir=cache_dir, offline=offline)
    try:
        output, code = _run(
            repo, PlanRequest(gpu, read_context(context), users, prefer), settings, as_json=as_json
        )
    except LoadError as error:
        sys.stderr.write(f"tetrad: {printable(str(error))}\n")
        raise typer.Exit(WRONG_QUESTION) from None
    sys.stdout.write(output)
    raise typer.Exit(code)


def exit_code(result: PlanResult) -> int:
    """Return what the process ends with: what `tetrad serve` could do on such a device."""
    if result.choice.plan is None or result.needs_several_gpus:
        return FITS_NOT
    return FITS_SHORTENED if result.choice.is_shortened else FITS


def _run(
    repo: str, plan_request: PlanRequest, settings: Settings, *, as_json: bool
) -> tuple[str, int]:
    from service.commands.plan_view import as_document, as_table

    spec = read_spec(repo)
    result = make_plan(plan_request, settings, partial(find_named_variants, spec, settings))
    code = exit_code(result)
    if not as_json:
        return as_table(result), code
    document = {**as_document(spec.repo, result), "exit_code": code}
    return json.dumps(document, indent=2) + "\n", code
