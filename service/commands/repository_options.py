"""What commands that look at a repository have in common: their options, settings and logs.

They fetch no weights, so retries are waited for in silence: the end says what came of them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.logs import set_up_logs
from service.settings import config_file_from_environment, load_settings, means_demo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.catalogue.variants import Variant
    from loaders.repository.spec import VariantSpec
    from service.settings import Settings

TokenOption = Annotated[
    str | None,
    # These options go by the settings' names, too.
    typer.Option(
        "--token",
        "--hub-token",
        metavar="TOKEN",
        help="The hub's token. (TETRAD_HUB_TOKEN, HF_TOKEN)",
    ),
]
CacheOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where checkpoints and records lie.")
]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline", "--local-files-only", help="Ask no hub; look at what is on this machine."
    ),
]


def read_settings(*, token: str | None, cache_dir: Path | None, offline: bool) -> Settings:
    """Read the settings, flags first, and send logs to standard error: the answer is on the other.

    Raises SettingsError.
    """
    flags = {"hub_token": token, "cache_dir": cache_dir, "local_files_only": offline or None}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(given, config_file_from_environment())
    set_up_logs(settings.model_copy(update={"log_level": "warning"}))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return settings


def read_spec(repo: str) -> VariantSpec:
    """Read the name of a repository or of one of its variants; `demo` is the demo's repository.

    Raises InvalidSpecError.
    """
    from loaders.demo import DEMO_REPO
    from loaders.repository.spec import parse_spec

    return parse_spec(DEMO_REPO if means_demo(repo) else repo)


def find_named_variants(spec: VariantSpec, settings: Settings) -> Sequence[Variant]:
    """List the variants that a name means. Raises LoadError."""
    from loaders.catalogue.find import find_variants

    return find_variants(
        spec,
        cache_dir=settings.cache_dir,
        token=settings.hub_token_value,
        local_files_only=settings.local_files_only,
    )
