"""What answers of a wanted form cost, and how many of two hundred schemas the demo answers.

    .venv/bin/python -m benchmarks.structured_output [--rounds N] [--record]

*Cost*: eight streams at once, free and constrained in turns, as many tokens each. A pattern of
words leaves the model a choice everywhere; of a list of JSON objects much is demanded, and comes
without a step of its own. *Schemas*: `benchmarks.structured_schemas`, greedy, eight at a time.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import jsonschema_rs

from benchmarks import record
from benchmarks.command_line import make_parser
from benchmarks.http_client import stream
from benchmarks.server import serving
from benchmarks.serving import show
from benchmarks.structured_schemas import Case, cases, closed

if TYPE_CHECKING:
    from benchmarks.server import Server

NUM_STREAMS = 8
NUM_TOKENS = 160
MAX_JSON_TOKENS = 512  # of an answer to a schema
ROUNDS = 5
MOST_COST = 0.10  # of the tokens a second
ENDLESS_BLANKS = re.compile(r"\s{40}")
PROMPT = "Here is a list of people and what they like:\n"
PEOPLE = {
    "type": "array",
    "minItems": 1_000,
    "items": closed(
        {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "likes": {"enum": ["tea", "coffee", "neither"]},
        }
    ),
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {},
    "pattern": {"regex": "[A-Za-z0-9 ,.:;!?'()\\n-]*"},
    "JSON": {"json_schema": PEOPLE},
}


async def tokens_per_s(server: Server, form: dict[str, Any], seed: int) -> float:
    """Run eight streams at once; return their tokens a second together."""
    began = time.perf_counter()
    bodies = [
        {
            "prompt": PROMPT + f"{n}. ",
            "max_tokens": NUM_TOKENS,
            "temperature": 0.8,
            "seed": seed + n,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            **form,
        }
        for n in range(NUM_STREAMS)
    ]
    answers = await asyncio.gather(*(stream(server.host, server.port, body) for body in bodies))
    took = time.perf_counter() - began
    counts = [answer.completion_tokens or 0 for answer in answers]
    if min(counts) < NUM_TOKENS * 3 // 4:  # JSON is ended a little before its tokens are
        raise RuntimeError(f"streams were shorter than asked: {answers}")
    return sum(counts) / took


async def measure_cost(server: Server, rounds: int) -> dict[str, Any]:
    """Ask in turns, in another order each round; compare within a round."""
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(rounds + 1):
        for name in sorted(FORMS, reverse=bool(number % 2)):
            measured = await tokens_per_s(server, FORMS[name], 100 * number)
            if number:  # the first round warms up, and reads the grammars
                found[name].append(measured)
    row: dict[str, Any] = {"part": "cost"}
    for name, figures in found.items():
        row[f"{name}, tokens/s"] = round(statistics.median(figures), 1)
        if name != "free":
            ratios = [one / free for one, free in zip(figures, found["free"], strict=True)]
            row[f"{name} ÷ free"] = round(statistics.median(ratios), 3)
    row["goal"] = f"at least {1 - MOST_COST:.2f}"
    return row


async def judge(client: httpx.AsyncClient, case: Case) -> str:
    """Ask for one schema; say in a word what came of it."""
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": case.schema}}
    body = {
        "messages": [{"role": "user", "content": case.question}],
        "max_tokens": MAX_JSON_TOKENS,
        "temperature": 0,
        "response_format": form,
    }
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code == 400:
        return "refused, as listed" if case.is_refused else "refused, though not listed"
    choice = response.json()["choices"][0]
    text = choice["message"]["content"]
    if ENDLESS_BLANKS.search(text):
        return "endless blanks"
    try:
        validator = jsonschema_rs.validator_for(case.schema, validate_formats=True)
        validator.validate(json.loads(text))
    except ValueError:
        return f"not valid, ended by {choice['finish_reason']}"
    return "valid" if choice["finish_reason"] == "stop" else "valid, ended in time"


async def measure_schemas(server: Server) -> dict[str, Any]:
    """Ask for all two hundred, eight at a time."""
    places = asyncio.Semaphore(NUM_STREAMS)
    url = f"http://{server.host}:{server.port}"
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def ask(case: Case) -> str:
            async with places:
                return await judge(client, case)

        words = await asyncio.gather(*map(ask, cases()))
    return {"part": "schemas", **dict(Counter(words).most_common())}


def main() -> None:
    """Measure the demo."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    arguments = parser.parse_args()
    with serving("--max-num-seqs", str(NUM_STREAMS)) as server:
        rows = [
            asyncio.run(measure_cost(server, arguments.rounds)),
            asyncio.run(measure_schemas(server)),
        ]
    for row in rows:
        show(row)
    if arguments.record:
        settings = {
            "streams": NUM_STREAMS,
            "tokens": NUM_TOKENS,
            "rounds": arguments.rounds,
            "max_tokens of a schema": MAX_JSON_TOKENS,
        }
        print(record.write("structured_output", settings, rows))


if __name__ == "__main__":
    main()
