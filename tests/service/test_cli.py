"""The `tetrad` command: its options are the settings, and its errors one line each."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from service.cli import takes_settings
from service.settings import Settings, flag_of
from tests.models import tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def tetrad(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TETRAD_")}
    return subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", *arguments],
        env={**environment, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def split_by(pattern: str) -> dict[str, object]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


@pytest.fixture(scope="module")
def serve_help() -> str:
    return tetrad("serve", "--help").stdout


def test_flags_of_serve_and_settings_are_the_same(serve_help):
    flags = set(re.findall(r"^  (--[a-z][a-z-]*)", serve_help, re.MULTILINE))
    settings = {flag_of(name) for name in Settings.model_fields if name != "variant"}
    assert flags - {"--config", "--help"} == settings
    assert "[VARIANT]" in serve_help


def test_help_says_what_each_setting_means(serve_help):
    text = " ".join(serve_help.split())
    for name, field in Settings.model_fields.items():
        assert " ".join(field.description.split()) in text, name
        assert f"(TETRAD_{name.upper()})" in text


@pytest.mark.parametrize("command", [[], ["chat"]])
def test_help_has_a_short_name(command):
    assert tetrad(*command, "-h").stdout == tetrad(*command, "--help").stdout != ""


def test_values_reach_the_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("TETRAD_CONFIG", raising=False)
    config = tmp_path / "tetrad.yaml"
    config.write_text("port: 1\nmax_num_seqs: 2\n")
    seen: list[Settings] = []
    run = takes_settings(seen.append)
    run(config=config, variant="a/b:c", port="3", local_files_only=True, host=None)
    (settings,) = seen
    assert (settings.variant, settings.port, settings.max_num_seqs) == ("a/b:c", 3, 2)
    assert settings.local_files_only
    assert settings.host == "127.0.0.1"


def test_version():
    assert re.fullmatch(r"tetrad \d+\.\d+\.\d+\S*\n", tetrad("--version").stdout)


def test_unknown_flag_ends_with_2():
    done = tetrad("serve", "--prot", "1")
    assert done.returncode == 2
    assert "--port" in done.stderr


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("tetrad: ")
    assert message in done.stderr


def test_wrong_setting_is_one_line_and_2():
    assert_one_line(tetrad("serve", "--port", "abc"), 2, "--port is 'abc'")
    assert_one_line(tetrad("serve", TETRAD_PORT="tcp://10.0.0.1:80"), 2, "TETRAD_PORT")
    assert_one_line(tetrad("serve", "--config", "none.yaml"), 2, "none.yaml")


@pytest.mark.parametrize("variable", ["TETRAD_CONFIG", "TETRAD_API_KEY_FILE"])
def test_a_pipe_for_a_file_of_settings_is_one_line_and_2_at_once(tmp_path: Path, variable):
    os.mkfifo(tmp_path / "pipe")
    done = tetrad("serve", "nobody/nothing", **{variable: str(tmp_path / "pipe")})
    assert_one_line(done, 2, "is a named pipe (FIFO); a regular file was expected")


@pytest.mark.smoke
@pytest.mark.slow
def test_taken_port_is_one_line_and_3(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_one_line(tetrad("serve", str(tmp_path), "--port", port), 3, f"port {port}")


@pytest.mark.slow
def test_variant_that_cannot_be_loaded_ends_with_1_and_the_reason(tmp_path: Path):
    done = tetrad("serve", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_tokenizer": split_by("(a+)+c")}, "retry-limit-in-match"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "SIGABRT"),
    ],
)
def test_a_hostile_tokenizer_ends_with_1_and_the_reason_and_is_not_tried_again(
    tmp_path: Path, changes, reason
):
    write_gptq_checkpoint(tmp_path, tiny_llama(), tokenizer=tiny_tokenizer())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    done = tetrad("serve", str(tmp_path), "--port", "0", "--device", "cpu")
    assert done.returncode == 1
    assert "the tokenizer in" in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("is not used") <= 2  # in the log and in the last line
