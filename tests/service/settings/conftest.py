"""Settings that no variable of whoever runs the tests has a part in."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TETRAD_"):
            monkeypatch.delenv(name)
