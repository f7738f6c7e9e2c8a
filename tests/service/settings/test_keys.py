"""When a server needs a key, and where it may come from."""

from __future__ import annotations

import pytest

from service.errors import SettingsError
from service.settings import Settings, is_loopback, read_key, read_metrics_token


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    assert is_loopback(host)
    assert read_key(Settings(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "128.0.0.1"])
def test_any_other_address_needs_a_key(host):
    with pytest.raises(SettingsError, match="TETRAD_API_KEY"):
        read_key(Settings(host=host))
    assert read_key(Settings(host=host, api_key="sk-1")) == "sk-1"


def test_key_may_come_from_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-from-file\n")
    assert read_key(Settings(api_key_file=path, host="0.0.0.0")) == "sk-from-file"


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"two words", b"two\nlines", b"sk-\xff", b"a\0b"]
)
def test_file_without_a_usable_key_is_an_error(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="api_key_file"):
        read_key(Settings(api_key_file=path))


def test_the_token_of_metrics_comes_from_a_setting_or_a_file_and_is_no_other_key(tmp_path):
    assert read_metrics_token(Settings()) is None
    assert read_metrics_token(Settings(metrics_token="scrape")) == "scrape"
    path = tmp_path / "token"
    path.write_text("from-file\n")
    assert read_metrics_token(Settings(metrics_token_file=path)) == "from-file"
    for other in ({"api_key": "same"}, {"admin_key": "same"}):
        with pytest.raises(SettingsError, match="metrics_token"):
            read_metrics_token(Settings(metrics_token="same", **other))
    with pytest.raises(ValueError, match="keep one"):
        Settings(metrics_token="a", metrics_token_file=path)


def test_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        read_key(Settings(api_key_file=tmp_path / "none"))


@pytest.mark.parametrize("key", ["", " ", "schlüssel", "a b"])
def test_unusable_key_is_an_error(key):
    with pytest.raises(SettingsError, match="no usable key"):
        read_key(Settings(api_key=key))
