"""POST /infill over HTTP, as editors send it."""

from __future__ import annotations

import dataclasses
import threading

import httpx2 as httpx
import pytest

from engine.outputs import TokenLogprobs
from service.api.llama_cpp import infill
from service.text.backend import decode_whole
from tests.service.fakes import END, LIMITS, FakeEngine, gap_infilling, running_server, says

from .conftest import TEXT

# What llama.vim sends at each keystroke.
LLAMA_VIM = {
    "input_prefix": "import sys\n\ndef f(x):\n",
    "input_suffix": "\n\nprint(f(1))\n",
    "input_extra": [
        {"text": "def g(): pass\n", "time": [1732, 5], "filename": "g.py"},
        {"text": "def h(): pass\n", "time": [1733, 6], "filename": "h.py"},
    ],
    "prompt": "    ret",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}


def test_llama_vim_s_body_gets_the_fields_it_asks_for(editor):
    response = editor.http.post("/infill", json=LLAMA_VIM)
    assert response.status_code == 200
    body = response.json()
    assert sorted(body) == sorted(LLAMA_VIM["response_fields"])
    assert body["content"] == "return x\n    y = 1"
    assert body["timings/prompt_n"] == len(editor.engine.submitted[-1][0])
    assert body["truncated"] is False
    assert editor.prompt == (
        "<s><repo_name>myproject<file_sep>g.py\ndef g(): pass\n<file_sep>h.py\ndef h(): pass\n"
        "<file_sep><fim_prefix>import sys\n\ndef f(x):\n    ret<fim_suffix>\n\nprint(f(1))\n"
        "<fim_middle>"
    )
    assert editor.params.top_k == 40
    assert editor.params.top_p == 0.9


def test_llama_vim_s_fields_without_effect_are_named(editor):
    response = editor.http.post("/infill", json=LLAMA_VIM)
    named = set(response.headers["x-ignored-params"].split(", "))
    assert named == {"samplers", "t_max_prompt_ms", "input_extra[].time"}


def test_warm_up_reads_the_prompt_and_makes_nothing(editor):
    body = editor.infill(
        input_prefix="", input_suffix="", prompt="", n_predict=0, samplers=[], t_max_predict_ms=1
    )
    assert body["content"] == ""
    assert body["tokens_predicted"] == 0
    assert body["timings"]["predicted_n"] == 0
    assert body["generation_settings"]["n_predict"] == 0
    assert body["stop_type"] == "limit"
    assert editor.prompt == "<s><fim_prefix><fim_suffix><fim_middle>"
    assert editor.params.max_tokens == 1


def test_whole_answer(editor):
    editor.engine.num_cached_tokens = 5
    body = editor.infill()
    assert body["content"] == TEXT
    assert body["stop"] is True
    assert body["stop_type"] == "eos"
    assert body["stopping_word"] == ""
    assert body["has_new_line"] is True
    assert body["tokens"] == []
    assert body["tokens_predicted"] == len(TEXT) + 1
    assert body["tokens_evaluated"] == len(editor.engine.submitted[-1][0])
    assert body["tokens_cached"] == body["timings"]["cache_n"] == 5
    assert body["prompt"] == editor.prompt
    assert body["truncated"] is False
    assert body["tokens_cut"] == {"prefix": 0, "suffix": 0, "files": 0}
    assert "id_slot" not in body


def test_path_with_v1_is_the_same(editor):
    body = {"input_prefix": "a", "input_suffix": "b"}
    assert editor.http.post("/v1/infill", json=body).json()["content"] == TEXT


@pytest.mark.parametrize("piece", ["<fim_pad>", "<file_sep>", "<|endoftext|>"])
def test_family_s_end_piece_ends_it_and_is_no_text(editor, tokenizer, piece):
    end = tokenizer.backend_tokenizer.token_to_id(piece)
    ids = [*tokenizer.encode("ab", add_special_tokens=False), end, 70, 71]
    editor.engine.script = lambda prompt, params: ids
    body = editor.infill(return_tokens=True)
    assert body["content"] == "ab"
    assert body["stop_type"] == "eos"
    assert body["tokens"][-1] == end


def test_line_too_far_left_ends_it_and_is_left_out(editor):
    body = editor.infill(n_indent=4)
    assert body["content"] == "return x\n    y = 1"
    assert body["stop_type"] == "limit"
    assert editor.infill(n_indent=0)["content"] == TEXT


def test_time_limit_ends_it_once_a_line_has_ended(editor):
    editor.engine.delay_s = 0.001
    body = editor.infill(t_max_predict_ms=1)
    assert body["content"].startswith("return x\n")
    assert len(body["content"]) < len(TEXT)
    assert body["stop_type"] == "limit"


@pytest.mark.parametrize("limit_ms", [0, -1, 60_000])
def test_time_that_is_no_limit_or_not_up_ends_nothing(editor, limit_ms):
    assert editor.infill(t_max_predict_ms=limit_ms)["content"] == TEXT


def test_stop_string_ends_it_and_is_told(editor):
    body = editor.infill(stop=["y ="])
    assert body["content"] == "return x\n    "
    assert body["stop_type"] == "word"
    assert body["stopping_word"] == "y ="


def test_ends_can_be_ignored(editor, tokenizer):
    piece = tokenizer.backend_tokenizer.token_to_id("<fim_pad>")
    editor.engine.script = lambda prompt, params: [70, piece, 71]
    body = editor.infill(ignore_eos=True, n_predict=3)
    assert body["tokens_predicted"] == 3
    assert "pad" not in body["content"]
    assert len(body["content"]) == 2


@pytest.mark.parametrize("name", ["n_predict", "max_tokens"])
def test_length_is_bounded_by_either_name(editor, name):
    body = editor.http.post("/infill", json={"input_prefix": "", "input_suffix": "", name: 3})
    assert body.json()["content"] == TEXT[:3]


@pytest.mark.parametrize("length", [{"n_predict": -1}, {"n_predict": None}])
def test_no_bound_is_what_the_context_leaves(editor, length):
    editor.infill(**length)
    prompt, params = editor.engine.submitted[-1]
    assert params.max_tokens == editor.engine.max_model_len - len(prompt)


def test_what_has_no_room_is_cut_and_told(editor):
    response = editor.ask(input_prefix="a" * 300, input_suffix="b" * 3, n_predict=10)
    cut = 300 + 3 + 4 - (editor.engine.max_model_len - 10)
    assert response.json()["truncated"] is True
    assert response.json()["tokens_cut"] == {"prefix": cut, "suffix": 0, "files": 0}
    assert response.headers["x-truncated-prompt"] == f"prefix={cut}"


def test_answer_that_ends_with_the_context_is_truncated(editor, tokenizer):
    editor.engine.script = says(tokenizer, "a" * 300)
    body = editor.infill(n_predict=-1)
    assert body["truncated"] is True
    assert body["tokens_cut"]["prefix"] == 0


def test_timings_are_those_of_the_clock(editor):
    editor.engine.delay_s = 0.002
    timings = editor.infill()["timings"]
    assert timings["prompt_ms"] >= 2
    assert timings["predicted_ms"] >= 2 * len(TEXT)
    assert timings["predicted_n"] == len(TEXT) + 1
    per_second = 1000 * timings["predicted_n"] / timings["predicted_ms"]
    assert timings["predicted_per_second"] == pytest.approx(per_second)
    assert timings["prompt_per_token_ms"] == pytest.approx(
        timings["prompt_ms"] / timings["prompt_n"]
    )


def test_prompt_that_is_not_to_be_cached_has_a_salt_of_its_own(editor):
    editor.infill(cache_prompt=True)
    editor.infill(cache_prompt=False)
    editor.infill(cache_prompt=False)
    salts = [terms.cache_salt for terms in editor.engine.terms[-3:]]
    assert salts[-3] == ""
    assert "" not in salts[-2:]
    assert salts[-1] != salts[-2]


def test_sampling_fields_reach_the_engine(editor):
    editor.infill(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        typical_p=0.75,
        repeat_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=7,
    )
    params = editor.params
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 3, 0.5)
    assert (params.min_p, params.typical_p, params.repetition_penalty) == (0.25, 0.75, 1.5)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.seed == 7


def test_settings_that_came_of_it_are_told(editor):
    told = editor.infill(seed=7, stop=["q"], n_indent=2, n_predict=9)["generation_settings"]
    assert (told["seed"], told["stop"], told["n_indent"], told["n_predict"]) == (7, ["q"], 2, 9)
    assert told["temperature"] == 1.0


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, None])
def test_seed_may_be_random(editor, seed):
    assert editor.infill(seed=seed)["generation_settings"]["seed"] == -1
    assert editor.params.seed is None


@pytest.mark.parametrize(
    "biases",
    [
        [[70, 1.5], ["A", -2], [71, False]],
        {"70": 1.5, "A": -2, "71": False},
        [["70", 1.5], ["A", -1.5], ["A", -0.5], [71, -100], [71, -100]],
    ],
)
def test_biases_are_of_ids_and_of_texts(editor, tokenizer, biases):
    editor.infill(logit_bias=biases)
    (letter,) = tokenizer.encode("A", add_special_tokens=False)
    assert editor.params.logit_bias == {70: 1.5, letter: -2.0, 71: -100.0}


def test_texts_may_name_as_many_tokens_as_ids_may(tokenizer):
    gap = {"input_prefix": "a", "input_suffix": "b"}
    with running_server(
        FakeEngine(says(tokenizer, "x")),
        tokenizer,
        infilling=gap_infilling(tokenizer),
        limits=dataclasses.replace(LIMITS, max_token_ids=2),
    ) as server:
        url = f"{server.url}/infill"
        taken = httpx.post(url, json={**gap, "logit_bias": [["ab", 1.0], ["ba", 1.0]]}, timeout=20)
        refused = httpx.post(url, json={**gap, "logit_bias": [["abc", 1.0]]}, timeout=20)
    assert taken.status_code == 200
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "logit_bias"
    assert "name 3 tokens; give at most 2" in refused.json()["error"]["message"]


def test_tokens_are_told_with_their_logprobs(editor):
    editor.engine.logprobs = lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -0.5),))
    body = editor.infill(n_probs=1, n_predict=2)
    assert editor.params.logprobs == 1
    first, second = body["completion_probabilities"]
    assert first == {
        "id": first["id"],
        "token": "r",
        "bytes": [114],
        "logprob": -0.5,
        "top_logprobs": [
            {"id": first["id"], "token": "r", "bytes": [114], "logprob": -0.5},
        ],
    }
    assert second["token"] == "e"


def test_logprobs_is_another_name_of_n_probs(editor):
    editor.engine.logprobs = lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -0.5),))
    asked = [editor.infill(n_predict=2, **{name: 2}) for name in ("n_probs", "logprobs")]
    assert asked[0]["completion_probabilities"] == asked[1]["completion_probabilities"]
    assert editor.params.logprobs == 2
    assert asked[1]["generation_settings"]["n_probs"] == 2
    assert "completion_probabilities" not in editor.infill(logprobs=0)
    streamed = editor.events(n_predict=1, logprobs=1)
    assert len(streamed[0]["completion_probabilities"]) == 1


def test_temperature_has_no_bound_of_openai_s(editor):
    editor.infill(temperature=50)
    assert editor.params.temperature == 50


@pytest.mark.parametrize(
    ("asked", "is_told"),
    [
        ({}, True),
        ({"response_fields": ["prompt"]}, True),
        ({"response_fields": ["content"]}, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_is_decoded_beside_the_event_loop_and_only_where_it_is_told(
    editor, monkeypatch, asked, is_told, stream
):
    """It may be as long as the context."""
    threads = []

    def decode(backend, token_ids):
        threads.append(threading.current_thread().name)
        return decode_whole(backend, token_ids)

    monkeypatch.setattr(infill, "decode_whole", decode)
    body = editor.events(**asked)[-1] if stream else editor.infill(**asked)
    assert ("prompt" in body) == is_told
    assert [name.split("_")[0] for name in threads] == ["short-text"] * is_told
    assert not is_told or body["prompt"] == editor.prompt


def test_tokens_come_where_they_are_asked_for(editor, tokenizer):
    ids = [*tokenizer.encode(TEXT, add_special_tokens=False), END]
    assert editor.infill(return_tokens=True)["tokens"] == ids


def test_fields_that_do_not_exist_are_left_out(editor):
    body = editor.infill(response_fields=["stop_type", "nope", "timings/nope", "content/x"])
    assert body == {"stop_type": "eos"}


def test_object_can_be_asked_for_whole(editor):
    body = editor.infill(response_fields=["tokens_cut", "tokens_cut/files"])
    cut = {"prefix": 0, "suffix": 0, "files": 0}
    assert body == {"tokens_cut": cut, "tokens_cut/files": 0}


@pytest.mark.parametrize("missing", ["input_prefix", "input_suffix"])
def test_both_sides_of_the_gap_are_needed(editor, missing):
    body = {"input_prefix": "a", "input_suffix": "b"}
    del body[missing]
    response = editor.http.post("/infill", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == missing
    assert response.json()["error"]["code"] == "missing_required_parameter"


def test_variant_that_cannot_says_why(tokenizer):
    with running_server(FakeEngine(says(tokenizer, "x")), tokenizer) as server:
        body = {"input_prefix": "a", "input_suffix": "b"}
        response = httpx.post(f"{server.url}/infill", json=body, timeout=20)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "infilling_not_supported"
    assert "no pieces that mark a gap" in response.json()["error"]["message"]


def test_unknown_model_is_refused(editor):
    assert editor.ask(model="other").status_code == 404
    assert editor.ask(model="dummy").status_code == 200
