"""`tetrad mirror`: fills a folder for machines without a network, or checks one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.download_options import (
    FAILED,
    exit_on_errors,
    hub_access,
    progress_display,
    say,
)
from service.commands.plan_request import (
    NEEDS_SEVERAL,
    ContextOption,
    GpuOption,
    PlanRequest,
    PreferOption,
    UsersOption,
    make_plan,
    read_context,
)
from service.commands.repository_options import TokenOption  # noqa: TC001 - typer reads annotations
from service.errors import SettingsError
from service.settings import config_file_from_environment, load_settings

if TYPE_CHECKING:
    from loaders.repository.hub import HubAccess
    from loaders.repository.spec import VariantSpec

DEFAULT_BRANCH = "main"
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
            metavar="A,B",
            help="Branches, GGUF files or quantisations to mirror, with commas; `auto` is the one "
            "that `tetrad plan` chooses.",
        ),
    ] = DEFAULT_BRANCH,
    gpu: GpuOption = "auto",
    context: ContextOption = None,
    users: UsersOption = None,
    prefer: PreferOption = None,
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
        plan_request = PlanRequest(gpu, read_context(context), users, prefer)
        _mirror(repo, _names(branches), folder, token, plan_request)
    else:
        raise SettingsError("use `tetrad mirror REPO FOLDER`, or `tetrad mirror --check FOLDER`")


def _names(branches: str) -> list[str] | None:
    """Read the list; None leaves the choice to a plan."""
    names = [name.strip() for name in branches.split(",") if name.strip()]
    if names == [AUTO]:
        return None
    if not names or AUTO in names:
        raise SettingsError(
            f"--branches is {branches!r}; name what to mirror, as in --branches main,other, or say"
            f" {AUTO} alone"
        )
    return names


def _mirror(
    repo: str,
    branches: list[str] | None,
    folder: Path,
    token: str | None,
    plan_request: PlanRequest,
) -> None:
    from loaders.repository.mirror import mirror as fetch_all

    with exit_on_errors(), progress_display() as shown:
        _refuse_demo(repo, folder)
        access = hub_access(folder, token, shown)
        choose = partial(_choose, repo, plan_request, access)
        held = fetch_all(repo, branches, access, choose=choose, on_variant=shown.begin)
    for variant in held:
        serve = shlex.join(["tetrad", "serve", str(variant.spec), "--cache-dir", str(folder)])
        typer.echo(f"{variant.spec} is at commit {variant.commit}; to serve it:")
        typer.echo(f"  {serve} --local-files-only")


def _refuse_demo(repo: str, folder: Path) -> None:
    from loaders.demo.branches import branches_of
    from loaders.errors import InvalidSpecError

    if branches := branches_of(repo):
        names = ", ".join(branch.name for branch in branches)
        raise InvalidSpecError(
            f"{repo} is the demo, which is on no hub but built; `tetrad download {repo}:BRANCH"
            f" --cache-dir {folder}` builds a branch there, one of {names}"
        )


def _choose(repo: str, plan_request: PlanRequest, access: HubAccess) -> list[VariantSpec]:
    """Choose the variant to mirror, and say why."""
    from loaders.catalogue.find import find_variants
    from loaders.errors import NotEnoughMemoryError
    from loaders.repository.mirror import spec_on_hub

    spec = spec_on_hub(repo)
    # Not with the mirror as its cache: what was measured is on record in the user's own.
    settings = load_settings({}, config_file_from_environment())
    find = partial(find_variants, spec, cache_dir=access.cache_dir, token=access.token)
    result = make_plan(plan_request, settings, find)
    choice = result.choice
    if choice.plan is None:
        raise NotEnoughMemoryError(
            f"{repo} on {result.devices}: {choice.reason}; name what to mirror"
        )
    chosen = choice.plan.variant
    say(f"{chosen.spec}: {choice.reason}")
    if result.needs_several_gpus:
        say(NEEDS_SEVERAL)
    return [replace(spec, revision=chosen.revision, file=chosen.file)]


def _check(folder: Path) -> None:
    from loaders.repository.mirror import check_mirror, read_mirror

    with exit_on_errors():
        damage = check_mirror(folder)
        for entry in damage:
            say(f"damaged: {entry}")
        if damage:
            raise typer.Exit(FAILED)
        for variant in read_mirror(folder):
            typer.echo(f"{variant.spec} at commit {variant.commit} is whole")
