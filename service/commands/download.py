"""`tetrad download`: brings a variant to this machine, or checks that it is whole."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.demo import build_display
from service.commands.download_options import exit_on_errors, hub_access, progress_display, say
from service.commands.repository_options import TokenOption  # noqa: TC001 - typer reads annotations
from service.settings import config_file_from_environment, load_settings, means_demo

if TYPE_CHECKING:
    from loaders.repository.hub import HubAccess
    from loaders.repository.snapshot import Snapshot
    from loaders.repository.spec import VariantSpec


def download(
    variant: Annotated[
        str,
        typer.Argument(
            metavar="VARIANT",
            help="`repo`, `repo:branch`, `repo@commit`, `repo/file.gguf` or `repo:Q4_K_M`.",
        ),
    ],
    cache_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to put it. (TETRAD_CACHE_DIR, else HF_HOME)"),
    ] = None,
    token: TokenOption = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every file again; fetch anew what is damaged."),
    ] = False,
) -> None:
    """Fetch the files that a variant needs, going on where an earlier run stopped."""
    with exit_on_errors():
        spec = _named(variant)
        snapshot = _build(spec, cache_dir, verify=verify)
        if snapshot is None:
            with progress_display() as shown:
                access = hub_access(cache_dir, token, shown)
                _check_on_hub(spec, access)
                shown.begin(str(spec))
                snapshot = _fetch(spec, access, verify=verify)
    typer.echo(f"{spec} is at commit {snapshot.commit} in {snapshot.folder}")


def _named(variant: str) -> VariantSpec:
    from loaders.demo.branches import default_branch
    from loaders.errors import InvalidSpecError
    from loaders.repository.spec import parse_spec

    spec = parse_spec(str(default_branch()) if means_demo(variant) else variant)
    if spec.folder is not None:
        raise InvalidSpecError(f"{spec.folder} is on this machine already; name a repository")
    return spec


def _build(spec: VariantSpec, cache_dir: Path | None, *, verify: bool) -> Snapshot | None:
    """Have a branch of the demo built, which is on no hub; None where it is another's."""
    from loaders.demo.named import build_named
    from loaders.errors import CheckpointError
    from loaders.repository import hub
    from loaders.repository.opening import open_snapshot

    given = {} if cache_dir is None else {"cache_dir": cache_dir}
    settings = load_settings(given, config_file_from_environment())
    with build_display() as on_progress:
        found = build_named(spec, settings.cache_dir, on_progress=on_progress)
    if found is None:
        return None
    snapshot = open_snapshot(spec, cache_dir=found, local_files_only=True)
    if verify and (damage := hub.verify(snapshot)):
        raise CheckpointError(f"damaged: {damage[0]}; remove {snapshot.folder} to have it rebuilt")
    return snapshot


def _check_on_hub(spec: VariantSpec, access: HubAccess) -> None:
    from loaders.cache import find_built
    from loaders.errors import InvalidSpecError

    if find_built(spec.repo, access.cache_dir) is not None:
        raise InvalidSpecError(f"{spec.repo} was built on this machine and is on no hub; serve it")


def _fetch(spec: VariantSpec, access: HubAccess, *, verify: bool) -> Snapshot:
    from loaders.errors import CheckpointError
    from loaders.repository import hub

    snapshot = hub.download(spec, access)
    if not verify or not (damage := hub.verify(snapshot)):
        return snapshot
    for entry in damage:
        say(f"damaged: {entry}; fetching it again")
    hub.discard(spec, snapshot, damage, access.cache_dir)
    snapshot = hub.download(spec, access)
    if damage := hub.verify(snapshot):
        raise CheckpointError(
            f"{damage[0]}, though it was fetched again; check the disk of {access.cache_dir}"
        )
    return snapshot
