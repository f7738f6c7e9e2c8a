"""The law, across the border between processes: what a sequence gets in an engine's process, among
others that come and go, is to the last bit what an engine in this process gives to it alone."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest, Terms
from engine.sampling_params import SamplingParams
from engine.transport.client import Submission
from service.settings import WorkerSettings
from service.variants.handles import EngineProcess
from service.worker.build import build_engine
from service.worker_protocol.load_attempt import LoadRequest

if TYPE_CHECKING:
    from engine.core import Engine
    from engine.outputs import TokenLogprobs
    from engine.statistics import EngineStatistics
    from loaders.demo import DemoRepositories
    from tests.models import TinyRepositories

pytestmark = pytest.mark.slow

NUM_LEAVING = 10
SPREAD_S = 0.05  # far less than all of them take
MAX_LEN = 112
NUM_BLOCKS = 14  # for eight sequences of up to seven each

Answer = list[tuple[int, "TokenLogprobs | None"]]


def make_requests(vocab_size: int, count: int) -> list[Submission]:
    """Prompts that share beginnings, with settings of all kinds; some of them come in groups."""
    choose = random.Random(3)
    shared = [choose.randrange(4, vocab_size) for _ in range(16)]
    submissions: list[Submission] = []
    for group in range(count // 2):
        prompt = shared[: choose.choice([0, 16])]
        prompt = prompt + [choose.randrange(4, vocab_size) for _ in range(choose.randint(1, 12))]
        is_greedy = choose.random() < 0.5
        for seed in range(2):
            params = SamplingParams(
                max_tokens=choose.randint(1, 70),
                temperature=0.0 if is_greedy else 1.0,
                top_p=1.0 if is_greedy else choose.choice([0.7, 1.0]),
                seed=seed,
                frequency_penalty=choose.choice([0.0, 0.5]),
                logprobs=choose.choice([None, 0, 3]),
            )
            submissions.append(Submission(tuple(prompt), params, group))
    return submissions


def answers_alone(engine: Engine, submissions: list[Submission]) -> list[Answer]:
    answers: list[Answer] = []
    for number, submission in enumerate(submissions):
        prompt = tuple(submission.prompt_token_ids)
        engine.add(
            SequenceRequest(sequence_id=number, prompt_token_ids=prompt, params=submission.params)
        )
        outputs = []
        while engine.has_work:
            outputs += [o for o in engine.step() if not isinstance(o, SequenceStarted)]
        assert all(isinstance(output, TokenOutput) for output in outputs)
        answers.append([(output.token_id, output.logprobs) for output in outputs])
    return answers


async def answers_in_company(
    settings: WorkerSettings, submissions: list[Submission]
) -> tuple[list[Answer], EngineStatistics]:
    """Ask at random times, while others leave half-way."""
    choose = random.Random(5)
    handle = await EngineProcess.start(settings, LoadRequest(), lambda progress: None)
    ended = asyncio.create_task(handle.ended())
    await handle.client.ready()

    async def read(number: int, delay_s: float, most: int) -> Answer:
        await asyncio.sleep(delay_s)
        terms = Terms(caller=f"caller {number % 3}")
        (stream,) = handle.client.submit([submissions[number]], terms=terms)
        answer: Answer = []
        async for output in stream:
            answer.append((output.token_id, output.logprobs))
            if len(answer) == most:
                await stream.aclose()
        return answer

    reading = [
        read(number, choose.random() * SPREAD_S, MAX_LEN) for number in range(len(submissions))
    ]
    leaving = [
        read(choose.randrange(len(submissions)), choose.random() * SPREAD_S, 1)
        for _ in range(NUM_LEAVING)
    ]
    answers = (await asyncio.gather(*reading, *leaving))[: len(submissions)]
    report = await handle.client.check_integrity()
    statistics = handle.client.statistics
    assert report.is_idle
    assert report.problem is None
    assert statistics is not None
    await handle.stop()
    await ended
    return answers, statistics


def compare(settings: dict[str, Any], *, vocab_size: int, token_bytes: int, count: int) -> None:
    torch.set_num_threads(2)
    base = {"device": "cpu", "local_files_only": True, "batch_invariant": True, "num_threads": 2}
    submissions = make_requests(vocab_size, count)
    alone = WorkerSettings(
        **base, **settings, max_num_seqs=1, max_model_len=MAX_LEN, prefix_cache=False
    )
    engine = build_engine(
        alone, LoadRequest(), lambda phase, percent=None, load_attempt=None: None
    ).engine
    wanted = answers_alone(engine, submissions)  # type: ignore[arg-type]
    crowded = WorkerSettings(
        **base,
        **settings,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        max_model_len=MAX_LEN,
        kv_cache_size=NUM_BLOCKS * 16 * token_bytes,
        num_speculative_tokens=2,
    )
    answers, statistics = asyncio.run(answers_in_company(crowded, submissions))
    assert answers == wanted
    assert statistics.num_preemptions
    assert statistics.prefix_cache_hits
    assert statistics.num_drafted_tokens


@pytest.mark.smoke
def test_answers_of_an_engines_process_are_exactly_those_of_an_engine_here(
    tiny_repo: TinyRepositories,
):
    settings = {"variant": tiny_repo.specs()[0], "cache_dir": tiny_repo.cache_dir}
    compare(settings, vocab_size=512, token_bytes=2048, count=40)


def test_and_so_are_those_of_the_demo(demo: DemoRepositories):
    settings = {"variant": str(demo.default_spec), "cache_dir": demo.cache_dir}
    compare(settings, vocab_size=40_000, token_bytes=46_080, count=24)
