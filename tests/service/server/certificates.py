"""A certificate of one's own, made by OpenSSL's command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="needs the command openssl")


def trust_any() -> ssl.SSLContext:
    """Return a client's context that asks for nobody's signature."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def make_certificate(folder: Path, *, password: str | None = None) -> tuple[Path, Path]:
    """Return the files of a certificate for localhost and 127.0.0.1, and of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    secret = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    subprocess.run(
        [
            *(str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate), *secret),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
