"""What an operator can choose: the settings, how they are read, and what is said of wrong ones."""

from __future__ import annotations

from service.settings.batch_settings import Auto
from service.settings.explain import describe_errors
from service.settings.keys import is_loopback, read_admin_key, read_key, read_metrics_token
from service.settings.models import (
    Settings,
    VariantEntry,
    VariantSettings,
    WorkerSettings,
    unit_of,
    unless_auto,
)
from service.settings.names import (
    CONFIG_VARIABLE,
    DEMO_NAME,
    ENV_PREFIX,
    flag_of,
    means_demo,
    variable_of,
)
from service.settings.reading import config_file_from_environment, load_settings, unknown_variables

__all__ = [
    "CONFIG_VARIABLE",
    "DEMO_NAME",
    "ENV_PREFIX",
    "Auto",
    "Settings",
    "VariantEntry",
    "VariantSettings",
    "WorkerSettings",
    "config_file_from_environment",
    "describe_errors",
    "flag_of",
    "is_loopback",
    "load_settings",
    "means_demo",
    "read_admin_key",
    "read_key",
    "read_metrics_token",
    "unit_of",
    "unknown_variables",
    "unless_auto",
    "variable_of",
]
