"""docs/api.md, held against the code it describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api.error_responses import STATUS, UNEXPECTED
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from service.api.openai.fields import StreamOptions
from service.server.lifecycle import Phase

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
)
def test_page_has_every_field(name):
    assert f"`{name}`" in PAGE or f"`{name}." in PAGE


def test_page_has_every_code_beside_its_status():
    errors = PAGE.partition("\n## Errors\n")[2].partition("\n## ")[0]
    for form in (*STATUS.values(), UNEXPECTED):
        (row,) = [line for line in errors.splitlines() if f"`{form.code}`" in line]
        assert str(form.status) in row


def test_page_has_every_stream_option_and_phase():
    assert all(f"stream_options.{name}" in PAGE for name in StreamOptions.model_fields)
    assert all(f"`{phase.value}`" in PAGE for phase in Phase if phase is not Phase.SERVING)
