"""Where settings come from, which source wins, and what is said of wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.errors import SettingsError
from service.settings import (
    Settings,
    config_file_from_environment,
    flag_of,
    load_settings,
    unknown_variables,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tetrad.yaml"
    path.write_text("port: 1\nhost: 127.0.0.3\nkv_cache_size: 2GiB\n")
    return path


def test_flag_wins_over_variable_over_file_over_default(monkeypatch, config):
    assert load_settings({}, None).port == 8000
    assert load_settings({}, config).port == 1
    monkeypatch.setenv("TETRAD_PORT", "2")
    assert load_settings({}, config).port == 2
    settings = load_settings({"port": "3"}, config)
    assert settings.port == 3
    assert settings.host == "127.0.0.3"
    assert settings.kv_cache_size == 2 * 1024**3


def test_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("TETRAD_VARIANT", "")
    assert load_settings({}, None).variant is None


def test_the_demo_may_be_named_as_what_is_served_where_nothing_is(monkeypatch):
    for name in ("demo", " demo "):
        assert load_settings({"variant": name}, None).variant is None
    monkeypatch.setenv("TETRAD_VARIANT", "demo")
    assert load_settings({}, None).variant is None
    further = load_settings({"variant": "a/b", "also": ["demo", "small=demo"]}, None).variants()
    assert [one.variant for one in further] == ["a/b", None, None]
    assert further[2].served_model_name == "small"


def test_a_folder_that_is_called_demo_wins(monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"variant": "demo", "also": ["demo"]}, None)
    assert [one.variant for one in settings.variants()] == ["demo", "demo"]


@pytest.mark.parametrize("name", ["max_model_len", "kv_cache_size", "num_threads"])
def test_number_or_auto(name):
    assert getattr(load_settings({name: "auto"}, None), name) == "auto"
    assert getattr(load_settings({name: "512"}, None), name) == 512


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "abc"}, "--port is 'abc': "),
        ({"port": "65536"}, "--port is '65536': "),
        ({"max_model_len": "x"}, "--max-model-len is 'x': input should be a valid integer"),
        ({"max_model_len": "0"}, "or input should be 'auto'"),
        ({"gpu_memory_utilization": "1.5"}, "--gpu-memory-utilization"),
        ({"drain_limit_s": "inf"}, "--drain-limit-s"),
        ({"max_body_size": "4 elephants"}, "--max-body-size"),
        ({"log_format": "xml"}, "'console' or 'json'"),
        ({"api_key": "k", "api_key_file": "f"}, "keep one"),
        ({"variant": 3}, "VARIANT"),
    ],
)
def test_wrong_value_is_told_in_one_line(flags, message):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_wrong_values_are_told_together(monkeypatch, config):
    monkeypatch.setenv("TETRAD_MAX_NUM_SEQS", "none")
    config.write_text("port: x\nprot: 1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({"num_threads": "-1"}, config)
    message = str(caught.value)
    assert "TETRAD_MAX_NUM_SEQS is 'none'" in message
    assert f"port in {config} is 'x'" in message
    assert f"prot in {config} is not a setting" in message
    assert "--num-threads is '-1'" in message


def test_wrong_key_is_not_shown(config):
    config.write_text("api_key: [hunter2]\nhub_token: 12345\n")
    with pytest.raises(SettingsError, match="api_key") as caught:
        load_settings({}, config)
    assert "hunter2" not in str(caught.value)
    assert "12345" not in str(caught.value)
    assert "hunter2" not in repr(Settings(api_key="hunter2"))


@pytest.mark.parametrize("content", ["- a\n", "text", "a: [", "\x00", "1: 2"])
def test_file_that_holds_no_settings(config, content):
    config.write_text(content)
    with pytest.raises(SettingsError, match="config file") as caught:
        load_settings({}, config)
    assert "\n" not in str(caught.value)


def test_missing_file_is_an_error_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({}, tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    assert load_settings({}, tmp_path / "empty.yaml").port == 8000


def test_file_may_be_named_by_a_variable(monkeypatch, config):
    assert config_file_from_environment() is None
    monkeypatch.setenv("TETRAD_CONFIG", str(config))
    assert config_file_from_environment() == config


def test_slips_of_the_pen_in_variables_are_found(monkeypatch):
    monkeypatch.setenv("TETRAD_CONFIG", "x")
    monkeypatch.setenv("TETRAD_PORT", "1")
    monkeypatch.setenv("TETRAD_URL", "http://x")  # which server `tetrad chat` asks
    monkeypatch.setenv("TETRAD_MAX_MODEL_LENGTH", "1")
    assert unknown_variables() == ["TETRAD_MAX_MODEL_LENGTH"]


def test_every_setting_says_what_it_means():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert flag_of(name).startswith("--")


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://chat.example.org",
        "http://localhost:3000",
        "http://[::1]:8080",
        "http://10.0.0.1",
    ],
)
def test_origins_of_pages_are_taken_from_a_flag_and_a_variable(monkeypatch, origin):
    assert load_settings({"cors_origins": [origin]}, None).cors_origins == [origin]
    monkeypatch.setenv("TETRAD_CORS_ORIGINS", f"{origin} http://other.example")
    assert load_settings({}, None).cors_origins == [origin, "http://other.example"]


@pytest.mark.parametrize(
    "origin",
    ["", "chat.example.org", "https://x/", "https://x/path", "https://X.org", "null", "ftp://x",
     "https://x:", "https://*.example.org", "https://x y", "https://x\n"],
)  # fmt: skip
def test_origin_that_no_browser_sends_is_an_error(origin):
    with pytest.raises(SettingsError, match=r"--cors-origins is .*scheme and a host"):
        load_settings({"cors_origins": [origin]}, None)


@pytest.mark.parametrize("name", ["", " a", "a\r\nb", "a\x00", "a" * 201])
def test_names_that_no_client_could_send_are_errors(name):
    with pytest.raises(SettingsError, match="--aliases is "):
        load_settings({"aliases": ["a", name]}, None)
    with pytest.raises(SettingsError, match="--served-model-name is "):
        load_settings({"served_model_name": name}, None)


def test_names_may_hold_slashes_colons_and_letters_of_any_script():
    names = ["owner/name:branch@x", "Modèle für 子 1"]
    assert load_settings({"aliases": names}, None).aliases == names
