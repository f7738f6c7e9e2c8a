"""The `tetrad` command: reads the command line, and hands over.

The options of `serve` derive from `service.settings`; nothing is said twice. What takes long to
import (torch, for one) is imported by the command that needs it.
"""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.chat import chat
from service.commands.complete import complete
from service.commands.demo import demo
from service.commands.download import download
from service.commands.mirror import mirror
from service.commands.plan import plan
from service.commands.variants import variants
from service.errors import BindError, ServiceError
from service.settings import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    Settings,
    config_file_from_environment,
    flag_of,
    load_settings,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

WRONG_SETTING = 2
CANNOT_LISTEN = 3
REPEATABLE = {
    "also": "VARIANT",
    "aliases": "NAME",
    "cors_origins": "ORIGIN",
}  # settings that are lists, of what

app = typer.Typer(
    name="tetrad",
    help="Serves GPTQ, AWQ and GGUF checkpoints.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},  # every command's, too
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; an error that we foresaw is one line and an exit code."""
    try:
        app()
    except ServiceError as error:
        sys.stderr.write(f"tetrad: {error}\n")
        sys.exit(CANNOT_LISTEN if isinstance(error, BindError) else WRONG_SETTING)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tetrad {version('tetrad')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every setting as an option, and the file that holds them as `--config`.

    The command takes the settings first, then options of its own, if any.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(config: Path | None, **options: Any) -> None:
        of_command = {parameter.name: options.pop(parameter.name) for parameter in own}
        flags = {name: value for name, value in options.items() if value not in (None, [])}
        command(load_settings(flags, config or config_file_from_environment()), **of_command)

    config_option = Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help=f"YAML file of settings. ({CONFIG_VARIABLE})"
        ),
    ]
    annotations: dict[str, Any] = {"config": config_option}
    annotations |= {name: _option(name, field) for name, field in Settings.model_fields.items()}
    run.__annotations__ = {**annotations, "return": None}
    run.__annotations__ |= {parameter.name: parameter.annotation for parameter in own}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in annotations.items()
        ]
        + own
    )
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _option(name: str, field: FieldInfo) -> Any:
    """Describe a setting to typer; values stay text, the settings model reads and checks them."""
    help_text = f"{field.description} ({ENV_PREFIX}{name.upper()})"
    if name == "variant":
        return Annotated[str | None, typer.Argument(metavar="VARIANT", help=help_text)]
    if name in REPEATABLE:
        repeatable = typer.Option(flag_of(name), metavar=REPEATABLE[name], help=help_text)
        return Annotated[list[str] | None, repeatable]
    if field.annotation is bool:
        flags = f"{flag_of(name)}/--no-{flag_of(name).removeprefix('--')}"
        return Annotated[bool | None, typer.Option(flags, help=help_text)]
    metavar = (unit_of(field) or "value").upper()
    return Annotated[str | None, typer.Option(flag_of(name), metavar=metavar, help=help_text)]


@app.command()
@takes_settings
def serve(settings: Settings) -> None:
    """Serve a variant, or the demo where none is named, until told to stop."""
    from service.app import serve as run_server

    sys.exit(run_server(settings))


@app.command()
@takes_settings
def doctor(
    settings: Settings,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at this machine, and say what would keep a server, or VARIANT, from running here."""
    from service.commands.doctor import doctor as examine_machine

    sys.exit(examine_machine(settings, as_json=as_json))


app.command()(chat)
app.command()(complete)
app.command()(demo)
app.command()(plan)
app.command()(variants)
app.command()(download)
app.command()(mirror)


if __name__ == "__main__":
    main()
