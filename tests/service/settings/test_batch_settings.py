from __future__ import annotations

from pathlib import Path

from service.settings import load_settings


def test_files_and_batches_lie_in_the_users_folder_for_states(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert load_settings({}, None).state_folder == Path("/somewhere/tetrad")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings({}, None).state_folder == Path("/home/me/.local/state/tetrad")


def test_or_where_the_operator_says(monkeypatch):
    monkeypatch.setenv("TETRAD_STATE_DIR", "/var/lib/tetrad")
    assert load_settings({}, None).state_folder == Path("/var/lib/tetrad")
