"""`tetrad mirror`: fills a folder for machines without a network, or checks one."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import Annotated

import typer

from service.commands.fetching import (
    FAILED,
    TokenOption,
    foreseen_ends,
    hub_access,
    progress_display,
    say,
)
from service.errors import SettingsError

AUTO = "auto"  # a word for the choice of a plan; no branch is called so


def mirror(
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help="The repository, as `owner/name`.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where the mirror is, or will be.")
    ] = None,
    branches: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="Branches, GGUF files or quantisations to mirror, with commas."
        ),
    ] = "main",
    token: TokenOption = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Fetch nothing; compare a mirror with its hashes."),
    ] = None,
) -> None:
    """Keep variants in a folder that can be served without a network."""
    if check is not None and repo is None:
        _check(check)
    elif check is None and repo is not None and folder is not None:
        _mirror(repo, _names(branches), folder, token)
    else:
        raise SettingsError("use `tetrad mirror REPO FOLDER`, or `tetrad mirror --check FOLDER`")


def _names(branches: str) -> list[str]:
    names = [name.strip() for name in branches.split(",") if name.strip()]
    if not names or AUTO in names:
        raise SettingsError(
            f"--branches is {branches!r}; name what to mirror, as in --branches main,other"
        )
    return names


def _mirror(repo: str, branches: list[str], folder: Path, token: str | None) -> None:
    from loaders.mirror import mirror as fetch_all

    with foreseen_ends(), progress_display() as shown:
        access = hub_access(folder, token, shown)
        held = fetch_all(repo, branches, access, tell_variant=shown.begin)
    for variant in held:
        typer.echo(f"{variant.spec} is at commit {variant.commit}")
    typer.echo(f"Serve one with: tetrad serve VARIANT --cache-dir {folder} --local-files-only")


def _check(folder: Path) -> None:
    from loaders.mirror import check_mirror, read_mirror

    with foreseen_ends():
        damage = check_mirror(folder)
        for entry in damage:
            say(f"damaged: {entry}")
        if damage:
            raise typer.Exit(FAILED)
        for variant in read_mirror(folder):
            typer.echo(f"{variant.spec} at commit {variant.commit} is whole")
