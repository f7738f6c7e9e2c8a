"""TLS by a certificate and its key from files."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from service.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


def make_tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what a server speaks TLS with. Raises SettingsError.

    key: None where the certificate's file holds it, too.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    for path, name in ((certificate, "tls_certificate"), (key, "tls_key")):
        if path is not None:
            _require_readable(path, name)
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"tls_certificate {certificate} and its key {key or '(in the same file)'} cannot be"
            f" used: {error}; give PEM files that belong together"
        ) from error
    return context


def _require_readable(path: Path, name: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"cannot read {name} {path}: {error.strerror}") from error


def _refuse_to_ask() -> str:
    raise SettingsError("tls_key has a password, and nobody is there to type it; give one without")
