"""The events of a streamed /infill, and the choice of fields."""

from __future__ import annotations

import pytest

from engine.errors import EngineDeadError
from engine.outputs import TokenLogprobs
from service.api.llama_cpp.answer_models import InfillAnswer
from service.api.llama_cpp.answers import select

from .conftest import TEXT


def test_stream_gives_the_same_text_and_ends_with_all_the_rest(editor):
    *parts, last = editor.events()
    assert "".join(event["content"] for event in parts) == TEXT
    assert all(event["stop"] is False for event in parts)
    assert last["stop"] is True
    assert last["content"] == ""
    assert last["stop_type"] == "eos"
    assert last["has_new_line"] is True
    whole = editor.infill()
    assert last.keys() == whole.keys()
    assert last["tokens_predicted"] == whole["tokens_predicted"]


def test_stream_has_no_done(editor):
    assert "[DONE]" not in editor.ask(stream=True).text


def test_events_hold_the_ids_of_their_tokens(editor):
    parts = editor.events()[:-1]
    ids = [token_id for event in parts for token_id in event["tokens"]]
    assert ids == editor.infill(return_tokens=True)["tokens"]
    assert [event["tokens_predicted"] for event in parts] == list(range(1, len(ids) + 1))


def test_fields_are_chosen_of_the_last_event(editor):
    *parts, last = editor.events(response_fields=["timings/predicted_n", "stop"])
    assert last == {"timings/predicted_n": len(TEXT) + 1, "stop": True}
    assert all("content" in event for event in parts)


def test_timings_can_come_with_each_event(editor):
    parts = editor.events(timings_per_token=True, n_predict=3)[:-1]
    assert [event["timings"]["predicted_n"] for event in parts] == [1, 2, 3]
    assert all("timings" not in event for event in editor.events()[:-1])


def test_events_tell_their_tokens_logprobs(editor):
    editor.engine.logprobs = lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -0.5),))
    *parts, last = editor.events(n_probs=1, n_predict=2)
    assert [event["completion_probabilities"][0]["token"] for event in parts] == ["r", "e"]
    assert "completion_probabilities" not in last


def test_indentation_ends_a_stream_before_anything_of_the_line_is_sent(editor):
    *parts, last = editor.events(n_indent=4)
    assert "".join(event["content"] for event in parts) == "return x\n    y = 1"
    assert last["stop_type"] == "limit"


@pytest.mark.parametrize("fields", [{}, {"timings_per_token": True, "n_probs": 2}])
def test_events_are_byte_by_byte_what_the_model_writes(editor, fields):
    editor.engine.logprobs = lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -1e-7),))
    text = editor.ask(stream=True, input_prefix="é\u2028", **fields).text
    events = text.encode().split(b"\n\n")[:-1]
    assert len(events) == len(TEXT) + 2
    for event in events:
        data = event.removeprefix(b"data: ")
        read = InfillAnswer.model_validate_json(data)
        assert read.model_dump_json(exclude_unset=True).encode() == data


def test_failure_in_the_middle_is_told_as_the_last_event(editor):
    editor.engine.failure = EngineDeadError("the engine has stopped")
    editor.engine.fails_after = 3
    *parts, last = editor.events()
    assert len(parts) == 3
    assert last["error"]["code"] == "engine_dead"


def test_selection_leads_into_objects_alone():
    fields = {"a": 1, "b": {"c": {"d": 2}, "e": None}}
    names = ["b/c/d", "a", "b/e", "a/x", "b/x", "", "/", "b/c"]
    assert select(fields, names) == {"b/c/d": 2, "a": 1, "b/e": None, "b/c": {"d": 2}}
