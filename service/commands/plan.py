"""`tetrad plan`: which variant of a repository to take for a device, and why not the others.

Works without a GPU and downloads no weights. Exit codes: 0 it fits, 3 only with a shorter context,
4 nothing fits, 2 something was wrong with the question.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.looking import CacheOption, OfflineOption, TokenOption, look, look_settings

if TYPE_CHECKING:
    from loaders.plan import Choice, Prefer
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
    gpu: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="What it shall run on: `A10G`, `2xA10G:24GB`, `NAME:SIZE`, `cpu:16GB`; `auto` is "
            "what this machine has.",
        ),
    ] = "auto",
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Longest prompt and answer together; when absent 4096, or less where the model "
            "was made for less.",
        ),
    ] = None,
    users: Annotated[
        int, typer.Option(min=1, max=100_000, help="Sequences of that length at once.")
    ] = 1,
    prefer: Annotated[
        str, typer.Option(metavar="WHAT", help="`quality`, `speed` or `memory`, among what fits.")
    ] = "quality",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    token: TokenOption = None,
    cache_dir: CacheOption = None,
    offline: OfflineOption = False,
) -> None:
    """Say which variant to take for a device, what each one needs there, and why."""
    from loaders.errors import LoadError

    settings = look_settings(token=token, cache_dir=cache_dir, offline=offline)
    try:
        choice, output = _answer(
            repo, settings, gpu=gpu, context=context, users=users, prefer=prefer, as_json=as_json
        )
    except LoadError as error:
        sys.stderr.write(f"tetrad: {_printable(str(error))}\n")
        raise typer.Exit(WRONG_QUESTION) from None
    sys.stdout.write(output)
    raise typer.Exit(exit_code(choice))


def exit_code(choice: Choice) -> int:
    """Return what the process ends with."""
    if choice.plan is None:
        return FITS_NOT
    return FITS_SHORTENED if choice.is_shortened else FITS


def _answer(
    repo: str,
    settings: Settings,
    *,
    gpu: str,
    context: int | None,
    users: int,
    prefer: str,
    as_json: bool,
) -> tuple[Choice, str]:
    from loaders.accelerators import parse_gpus
    from loaders.plan import choose, plan_variants
    from loaders.records import Records
    from loaders.spec import parse_spec
    from service.commands.plan_view import as_document, as_table

    preference = _preference(prefer)
    devices = parse_gpus(gpu)
    spec = parse_spec(repo)
    planned = plan_variants(
        look(spec, settings),
        devices,
        context=context,
        users=users,
        records=Records(settings.cache_dir),
    )
    choice = choose(planned, preference)
    if as_json:
        document = as_document(spec.repo, devices, planned, choice, preference)
        return choice, json.dumps({**document, "exit_code": exit_code(choice)}, indent=2) + "\n"
    return choice, as_table(devices, planned, choice)


def _preference(text: str) -> Prefer:
    from loaders.errors import InvalidPreferenceError
    from loaders.plan import PREFERENCES

    for preference in PREFERENCES:
        if text == preference:
            return preference
    raise InvalidPreferenceError(f"prefer is {text!r}; choose one of {', '.join(PREFERENCES)}")


def _printable(text: str) -> str:
    from service.commands.text import printable

    return printable(text)
