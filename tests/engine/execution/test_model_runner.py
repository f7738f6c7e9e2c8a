from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from engine.attention import prompt as prompt_attention
from engine.config import EngineConfig
from engine.errors import OutOfMemoryError, UnsupportedArchitectureError
from engine.execution.model_runner import ModelRunner
from engine.kernels.launches import counted
from engine.process.in_thread import running_engine
from engine.process.loop import BuiltEngine
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, RowExtras, ScheduledBatch, ScheduledChunk, SlotStart
from tests.engine.tiny_models import (
    FUSED,
    generate,
    make_engine,
    make_model,
    make_prompts,
    run_engine,
)

if TYPE_CHECKING:
    from engine.transport.client import EngineClient

GREEDY = SamplingParams(max_tokens=12, temperature=0)


def make_runner(model: object) -> ModelRunner:
    sizes = EngineConfig(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64, num_blocks=8)
    return ModelRunner(model, sizes)  # type: ignore[arg-type]


def start(sequence_id: int, slot: int, prompt: list[int], table: tuple[int, ...]) -> SlotStart:
    return SlotStart(sequence_id, slot, GREEDY, 0, tuple(prompt), (), table)


def test_a_step_can_be_launched_before_the_one_before_it_is_read():
    """Its input token is taken from the slot, where the step before leaves it."""
    model = make_model(FUSED["llama"])
    (prompt,) = make_prompts(5)
    wanted = generate(model, prompt, 3)
    runner = make_runner(model)
    chunk = ScheduledChunk(7, 1, 0, tuple(prompt), 1)
    steps = [runner.launch(ScheduledBatch(Decodes(), (chunk,), (start(7, 1, prompt, (4, 1)),)))]
    steps += [runner.launch(ScheduledBatch(Decodes((7,), (1,), (n,)), ())) for n in (5, 6)]
    assert [step.result().token_ids for step in steps] == [{7: (token,)} for token in wanted]


def test_every_sequence_gets_its_own_token_however_the_rows_are_ordered():
    model = make_model(FUSED["llama"])
    prompts = dict(enumerate(make_prompts(3, 9)))
    wanted = {i: generate(model, prompt, 2) for i, prompt in prompts.items()}
    runner = make_runner(model)
    chunks = tuple(ScheduledChunk(i, i, 0, tuple(prompts[i]), 1) for i in (0, 1))
    starts = tuple(start(i, i, prompts[i], (i,)) for i in (0, 1))
    first = runner.launch(ScheduledBatch(Decodes(), chunks, starts)).result()
    second = runner.launch(ScheduledBatch(Decodes((0, 1), (0, 1), (3, 9)), ())).result()
    for i in (0, 1):
        assert [*first.token_ids[i], *second.token_ids[i]] == wanted[i]


def test_drafts_are_kept_as_far_as_they_are_what_is_sampled():
    """And the step after them goes on from the last token that held."""
    model = make_model(FUSED["llama"])
    (prompt,) = make_prompts(5)
    wanted = generate(model, prompt, 5)
    runner = make_runner(model)
    chunk = ScheduledChunk(7, 1, 0, tuple(prompt), 1)
    runner.launch(ScheduledBatch(Decodes(), (chunk,), (start(7, 1, prompt, (4,)),))).result()
    wrong = (wanted[3] + 1) % 300
    draft = ScheduledChunk(7, 1, 5, (wanted[0], wanted[1], wanted[2], wrong), 4, (RowExtras(),) * 4)
    kept = runner.launch(ScheduledBatch(Decodes(), (draft,))).result()
    assert kept.token_ids == {7: tuple(wanted[1:4])}
    last = runner.launch(ScheduledBatch(Decodes((7,), (1,), (8,)), ())).result()
    assert last.token_ids == {7: (wanted[4],)}


def test_a_head_wider_than_the_embedding_is_refused():
    model = make_model(FUSED["llama"])
    model.lm_head = nn.Linear(64, 400, bias=False)
    chunk = ScheduledChunk(0, 0, 0, (1,), 1)
    step = make_runner(model).launch(ScheduledBatch(Decodes(), (chunk,), (start(0, 0, [1], (0,)),)))
    with pytest.raises(
        UnsupportedArchitectureError, match="400 logits, its embedding has 311 rows"
    ):
        step.result()


def test_too_little_memory_is_said_in_the_engines_words(monkeypatch: pytest.MonkeyPatch):
    runner = make_runner(make_model(FUSED["llama"]))

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(runner._decoder, "logits", run_out)
    chunk = ScheduledChunk(0, 0, 0, (1,), 1)
    step = runner.launch(ScheduledBatch(Decodes(), (chunk,), (start(0, 0, [1], (0,)),)))
    with pytest.raises(OutOfMemoryError, match="2 GiB"):
        step.result()


def test_a_model_runs_in_a_thread_behind_its_client():
    model = make_model(FUSED["llama"])
    prompts = make_prompts(3, 17, 40)
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]

    async def answer(client: EngineClient, prompt: list[int]) -> list[int]:
        return [output.token_id async for output in client.generate(prompt, GREEDY)]

    async def answers() -> list[list[int]]:
        async with running_engine(lambda tell: BuiltEngine(make_engine(model), b"")) as client:
            return await asyncio.gather(*(answer(client, prompt) for prompt in prompts))

    num_threads = torch.get_num_threads()
    assert asyncio.run(answers()) == wanted
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize(
    ("asked", "attended_by"),
    [("auto", "prompt_attention_flash"), ("sdpa", "prompt_attention_sdpa")],
)
def test_prompts_are_attended_to_as_the_configuration_has_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, attended_by: str
):
    monkeypatch.setattr(prompt_attention, "takes_flash", lambda *facts: True)
    monkeypatch.setattr(prompt_attention, "attend_by_flash", prompt_attention.attend_by_sdpa)
    engine = make_engine(make_model(FUSED["llama"]), step_kernels="torch", prompt_attention=asked)
    with counted() as launches:
        run_engine(engine, [(make_prompts(9)[0], SamplingParams(max_tokens=2, temperature=0.0))])
    assert {name for name in launches if name.startswith("prompt_attention")} == {attended_by}
