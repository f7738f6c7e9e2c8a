"""How log lines come out where a thread writes them."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from service.api.form_bodies import FormReader
from service.errors import InvalidFormError
from service.logs import set_up_logs
from service.observation.line_writer import LineWriter
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers, root.level, logging.raiseExceptions
    yield
    root.handlers, root.level, logging.raiseExceptions = before
    structlog.reset_defaults()


def test_lines_of_ours_and_of_libraries_are_handed_to_the_writer_and_flushed_at_the_end():
    out = io.StringIO()
    set_up_logs(Settings(log_format="json"), writer=LineWriter(out))
    structlog.get_logger("ours").info("begun", number=1)
    logging.getLogger("theirs").warning("careful")
    for handler in logging.getLogger().handlers:
        handler.flush()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("begun", "info"),
        ("careful", "warning"),
    ]


def test_a_form_that_cannot_be_read_is_told_to_who_sent_it_alone():
    out = io.StringIO()
    set_up_logs(Settings(log_format="json"), writer=LineWriter(out))
    with pytest.raises(InvalidFormError):
        FormReader(b"x").push(b"--y\r\n")
    for handler in logging.getLogger().handlers:
        handler.flush()
    assert out.getvalue() == ""


def test_a_line_that_cannot_be_formed_fails_nothing():
    out = io.StringIO()
    set_up_logs(Settings(log_format="json"), writer=LineWriter(out))
    logging.getLogger("theirs").warning("%d of many", "not a number")
    logging.getLogger("theirs").warning("goes on")
    for handler in logging.getLogger().handlers:
        handler.flush()
    assert "goes on" in out.getvalue()
