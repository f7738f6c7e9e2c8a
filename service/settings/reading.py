"""Reads the settings from flags, environment variables and the YAML file; says which one wins.

What is said of wrong ones is `service.settings.explain`'s.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource

from service.errors import SettingsError
from service.settings.explain import explain_with_sources
from service.settings.files import read_text_file
from service.settings.models import Settings
from service.settings.names import CLIENT_VARIABLES, CONFIG_VARIABLE, ENV_PREFIX, variable_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_settings import PydanticBaseSettingsSource


def load_settings(flags: Mapping[str, object], config_file: Path | None) -> Settings:
    """Read the settings: flags win over variables, those over the file, that over the defaults.

    flags: only those given. Raises SettingsError with everything wrong in one line.
    """
    file_values = _read_config_file(config_file) if config_file is not None else {}

    class SettingsWithFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from_file = InitSettingsSource(settings_cls, init_kwargs=file_values)
            return init_settings, env_settings, from_file

    try:
        return SettingsWithFile(**dict[str, Any](flags))
    except ValidationError as error:
        raise SettingsError(explain_with_sources(error, flags, config_file)) from None


def config_file_from_environment() -> Path | None:
    """Return the file that `TETRAD_CONFIG` names."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def unknown_variables() -> list[str]:
    """List `TETRAD_…` variables that set nothing: most often a slip of the pen."""
    known = {variable_of(name) for name in Settings.model_fields}
    known |= {CONFIG_VARIABLE, *CLIENT_VARIABLES}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )


def _read_config_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_text_file(path, "config file"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first_line = " ".join(str(error).split())
        raise SettingsError(f"config file {path} is not YAML: {first_line}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"config file {path} is not a mapping of settings, as in `port: 8000`")
    return values
