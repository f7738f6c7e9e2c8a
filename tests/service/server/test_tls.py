"""Certificates: those that work, and what is said of those that don't."""

from __future__ import annotations

import pytest

from service.errors import SettingsError
from service.server.tls import make_tls
from tests.service.server.certificates import make_certificate, needs_openssl

pytestmark = needs_openssl


def test_certificate_and_key_may_be_two_files_or_one(tmp_path):
    certificate, key = make_certificate(tmp_path)
    make_tls(certificate, key)
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    make_tls(both, None)


def test_files_that_cannot_be_read_are_named(tmp_path):
    certificate, key = make_certificate(tmp_path)
    with pytest.raises(SettingsError, match=r"cannot read tls_certificate .*missing\.pem"):
        make_tls(tmp_path / "missing.pem", key)
    with pytest.raises(SettingsError, match=r"cannot read tls_key .*missing\.pem"):
        make_tls(certificate, tmp_path / "missing.pem")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    certificate, _ = make_certificate(tmp_path)
    (other := tmp_path / "other").mkdir()
    _, key = make_certificate(other)
    for wrong in (key, None, tmp_path / "noise"):
        (tmp_path / "noise").write_text("noise")
        with pytest.raises(SettingsError, match="belong together"):
            make_tls(certificate, wrong)


def test_nobody_is_asked_for_a_password(tmp_path):
    certificate, key = make_certificate(tmp_path, password="secret")
    with pytest.raises(SettingsError, match="tls_key has a password"):
        make_tls(certificate, key)
