"""One line a request: what it says, and what it never lets a client say."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from engine.outputs import FinishReason
from engine.statistics import TokenTimes
from service.observation.request_log import RequestLog, plain
from service.observation.request_record import RequestRecord
from service.observation.request_story import tell


def record(**fields: Any) -> RequestRecord:
    generation = SimpleNamespace(
        usage=SimpleNamespace(prompt_tokens=512, cached_tokens=448, completion_tokens=101),
        times=[TokenTimes(100.0, 0.0124, 100.2, 102.2, 0.1)],
        finish_reasons=[FinishReason.STOP],
    )
    given = {
        "endpoint": "/v1/chat/completions",
        "request_id": "req-1",
        "caller": "default",
        "model": "demo",
        "generation": generation,
        "status": 200,
        **fields,
    }
    return RequestRecord(started=100.0, **given)


def lines_of(request: RequestRecord, ended: float = 102.5, **options: Any) -> list[str]:
    lines: list[str] = []
    log = RequestLog(lines.append, **{"as_json": True, "slow_s": 10, **options})
    log.write(request, tell(request, ended))
    return lines


def test_a_json_line_has_numbers_as_numbers_and_names_as_other_lines_have_them():
    (line,) = lines_of(record())
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "request",
        "level": "info",
        "logger": "service.requests",
        "request_id": "req-1",
        "endpoint": "/v1/chat/completions",
        "caller": "default",
        "model": "demo",
        "status": 200,
        "outcome": "stop",
        "total_s": 2.5,
        "prompt_tokens": 512,
        "cached_tokens": 448,
        "generated_tokens": 101,
        "queue_s": 0.012,
        "first_token_s": 0.2,
        "tokens_per_s": 50.0,
    }


def test_a_console_line_is_short_and_its_columns_stand_below_each_other():
    (line,) = lines_of(record(), as_json=False)
    (other,) = lines_of(record(status=404, generation=None, model=None), as_json=False)
    assert "512 (448 cached) + 101 tokens" in line
    assert "queue_s=0.012 first_token_s=0.2 tokens_per_s=50.0" in line
    assert "\n" not in line
    assert len(line) < 250
    for column in ("request ", " s  ", "/v1/chat"):
        assert line.index(column) == other.index(column)
    assert "tokens" not in other


def test_a_slow_request_is_a_warning_and_says_where_its_time_went():
    (line,) = lines_of(record(), ended=120.0)
    fields = json.loads(line)
    assert (fields["level"], fields["slow"]) == ("warning", True)
    parts = ("body_s", "wait_model_s", "render_s", "queue_s", "prefill_s", "decode_s")
    assert all(isinstance(fields[part], float) for part in (*parts, "send_wait_s"))
    (line,) = lines_of(record(), ended=120.0, as_json=False)
    assert "[warning  ]" in line
    assert "prefill_s=0.188" in line


def test_above_the_level_of_info_only_slow_requests_have_lines():
    assert lines_of(record(), only_slow=True) == []
    assert len(lines_of(record(), ended=120.0, only_slow=True)) == 1


@pytest.mark.parametrize(
    "name",
    ["a b", "x\n2026-11-28 [info] forged", "\x1b[31mred", "a\x00", "ü", '"', "\u2028", "\x9b"],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_no_name_that_a_client_chose_breaks_or_forges_a_line(name, as_json):
    request = record(model=None, asked_model=name, request_id=name, generation=None, status=404)
    (line,) = lines_of(request, as_json=as_json)
    assert line.isascii()
    assert line.isprintable()
    if as_json:
        assert json.loads(line)["model"] == name
    else:
        assert json.dumps(name) in line


def test_long_names_are_cut_where_no_model_has_them():
    (line,) = lines_of(record(model=None, asked_model="x" * 10_000, status=404, generation=None))
    assert len(line) < 500


def test_usual_names_stay_as_they_are():
    for name in ("owner/name:gptq-4bit-32g@x", "demo", "cmpl-12", "gpt-4o", "length,stop"):
        assert plain(name) == name
