"""The keys that guard the server: read from a setting or a file, checked, asked for where needed.

What they open is decided in `service.team.keys`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from service.errors import SettingsError
from service.settings.files import read_text_file

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from service.settings.models import Settings


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(settings: Settings) -> str | None:
    """Return the key that guards the server; None only where nobody else can reach it."""
    key = _given_key(settings)
    if key is None and not is_loopback(settings.host):
        raise SettingsError(
            f"host is {settings.host} and no key is set: others could use the server; "
            "set TETRAD_API_KEY or TETRAD_API_KEY_FILE, or listen on 127.0.0.1"
        )
    return key


def read_admin_key(settings: Settings) -> str | None:
    """Return the key of the routes under /admin/; None leaves them out."""
    key = _usable_key(settings.admin_key, settings.admin_key_file, "admin_key")
    if key is not None and key == _given_key(settings):
        raise SettingsError("admin_key and api_key are the same; give the admin one of its own")
    return key


def read_metrics_token(settings: Settings) -> str | None:
    """Return the token that opens /metrics beside the server's key; None where there is none."""
    token = _usable_key(settings.metrics_token, settings.metrics_token_file, "metrics_token")
    if token is not None and token in (_given_key(settings), read_admin_key(settings)):
        raise SettingsError(
            "metrics_token is a key of this server, too; give scrapes a token of their own"
        )
    return token


def _given_key(settings: Settings) -> str | None:
    return _usable_key(settings.api_key, settings.api_key_file, "api_key")


def _usable_key(given: SecretStr | None, file: Path | None, name: str) -> str | None:
    if given is not None:
        key, source = given.get_secret_value(), name
    elif file is not None:
        source = f"{name}_file"
        key = _read_key_file(file, source)
    else:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{source} holds no usable key; give printable ASCII without spaces")
    return key


def _read_key_file(path: Path, source: str) -> str:
    try:
        return read_text_file(path, source, encoding="ascii")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{source} {path} is not a text file of one ASCII key") from error
