"""What /infill takes, names as ignored, and refuses."""

from __future__ import annotations

import pytest

from service.api.llama_cpp.fields import InfillRequest

GAP = {"input_prefix": "a", "input_suffix": "b"}
NEUTRAL = {
    "input_extra": [],
    "prompt": "",
    "samplers": [],
    "t_max_prompt_ms": 0,
    "id_slot": -1,
    "n_keep": 0,
    "n_discard": 0,
    "n_cache_reuse": 0,
    "min_keep": 0,
    "return_progress": False,
    "n_cmpl": 1,
    "n": 1,
    "n_probs": 0,
    "logprobs": False,
    "dry_multiplier": 0.0,
    "xtc_probability": 0,
    "dynatemp_range": 0,
    "mirostat": 0,
    "top_n_sigma": -1.0,
    "adaptive_target": -1,
    "post_sampling_probs": False,
    "grammar": "",
    "lora": [],
    "logit_bias": [],
    "response_fields": None,
    "seed": -1,
}
IGNORED = {
    "samplers": ["top_k"],
    "t_max_prompt_ms": 500,
    "id_slot": 0,
    "n_keep": 3,
    "n_discard": 1,
    "n_cache_reuse": 256,
    "min_keep": 1,
    "repeat_last_n": 64,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n"],
    "xtc_threshold": 0.1,
    "dynatemp_exponent": 1.0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "adaptive_decay": 0.9,
    "return_progress": True,
    "sse_ping_interval": 3,
    "something_else": 1,
}
UNSUPPORTED = {
    "n_cmpl": 2,
    "n": 2,
    "dry_multiplier": 0.5,
    "xtc_probability": 0.5,
    "dynatemp_range": 0.5,
    "mirostat": 2,
    "top_n_sigma": 1.0,
    "adaptive_target": 0.5,
    "post_sampling_probs": True,
    "lora": [{"id": 0, "scale": 0.5}],
}
WRONG = [
    ("n_predict", 2.0),
    ("n_predict", -3),
    ("n_indent", -1),
    ("t_max_predict_ms", -2),
    ("temperature", -1),
    ("top_p", 0),
    ("seed", -2),
    ("n_probs", 21),
    ("logprobs", 21),
    ("logprobs", True),
    ("temperature", 100.5),
    ("stream", 1),
    ("input_prefix", None),
    ("input_extra", [{"filename": "f"}]),
    ("input_extra", [{"text": ""}] * 1025),
    ("response_fields", ["a", 1]),
    ("response_fields", "content"),
    ("response_fields", ["a"] * 65),
    ("response_fields", ["a" * 513]),
    ("logit_bias", [[1, 2, 3]]),
    ("logit_bias", [[1, True]]),
    ("logit_bias", [[1, 101]]),
    ("logit_bias", [[-1, 1]]),
    ("logit_bias", [[True, 1]]),
    ("logit_bias", [["", 1]]),
    ("logit_bias", [["a" * 257, 1]]),
    ("logit_bias", [[1, 1]] * 1025),
    ("logit_bias", "x"),
    ("max_tokens", 5),
]


def test_neutral_values_are_silence(editor):
    response = editor.ask(**NEUTRAL)
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers


@pytest.mark.parametrize("name", IGNORED)
def test_fields_without_effect_are_named(editor, name):
    response = editor.ask(**{name: IGNORED[name]})
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == name


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_fields_that_would_make_another_answer_are_refused(editor, name):
    response = editor.ask(**{name: UNSUPPORTED[name]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    assert response.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_values_are_refused_by_the_name_of_their_field(editor, name, value):
    response = editor.ask(**{name: value})
    assert response.status_code == 400
    assert name in response.json()["error"]["message"]


def test_several_answers_are_refused_with_what_to_do_instead(editor):
    for name in ("n", "n_cmpl"):
        message = editor.ask(**{name: 2}).json()["error"]["message"]
        assert message.startswith(f"{name}: there is one answer to a request here; ask for 1")


def test_names_of_one_field_may_not_differ_but_for_neutral_values(editor):
    assert editor.ask(n_probs=1, logprobs=2).status_code == 400
    assert editor.ask(n_probs=0, logprobs=2).status_code == 200


def test_every_field_without_effect_or_support_is_tried_here():
    fields = InfillRequest.model_fields
    silent = {
        name
        for name, field in fields.items()
        if field.json_schema_extra or "nly " in (field.description or "")[:5]
    }
    assert silent <= IGNORED.keys() | UNSUPPORTED.keys()


def test_unnamed_file_has_a_name_all_the_same(editor):
    editor.infill(input_extra=[{"text": "t"}])
    assert "<file_sep>tmp\nt" in editor.prompt
