"""The settings of connections: what is taken, and what would never have an effect."""

from __future__ import annotations

import pytest

from service.errors import SettingsError
from service.settings import load_settings


def test_defaults_are_those_that_the_limits_have_by_themselves():
    from service.app import make_front
    from service.server.front import Front

    front = make_front(load_settings({}, None))
    assert front.connections.limits == Front().connections.limits
    assert (front.tls, front.root_path, front.trusted_proxies) == (None, "", [])


@pytest.mark.parametrize("proxies", ["127.0.0.1 10.0.0.0/8", '["::1"]', "*"])
def test_proxies_are_addresses_networks_or_any(monkeypatch, proxies):
    monkeypatch.setenv("TETRAD_TRUSTED_PROXIES", proxies)
    assert load_settings({}, None).trusted_proxies


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trusted_proxies": ["proxy.example.org"]}, "an address or a network"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "an address or a network"),
        ({"root_path": "tetrad"}, "--root-path"),
        ({"root_path": "/tetrad/"}, "--root-path"),
        ({"root_path": "/a b"}, "--root-path"),
        ({"tls_key": "/a/key.pem"}, "tls_key is set without tls_certificate"),
        ({"header_timeout_s": "0"}, "--header-timeout-s"),
        ({"max_connections": "0"}, "--max-connections"),
        ({"min_body_rate": "0"}, "--min-body-rate"),
    ],
)
def test_what_cannot_work_is_refused(flags, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(flags, None)
