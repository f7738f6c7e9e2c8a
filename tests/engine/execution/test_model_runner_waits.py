"""A step that is launched makes the host wait for nothing: the GPU's path, run on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.core import Engine
from engine.execution import decode_graphs, model_runner
from engine.execution.host_ring import HostRing
from engine.execution.model_runner import ModelRunner
from engine.execution.path import ExecutionPath
from engine.execution.replayed import ReplayedRecorder
from engine.kernels.choice import step_kernels
from engine.outputs import PromptLogprobs, SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from tests.engine.host_waits import HostWaitError, NoReads, NoWaits
from tests.engine.pinned_fakes import FakeMemory
from tests.engine.tiny_models import FUSED, UNFUSED, VOCAB_SIZE, make_model, make_prompts

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from engine.constraint import TokenMask
    from engine.outputs import TokenLogprobs
    from engine.scheduling.batch import ScheduledBatch

NUM_TOKENS = 14


class EvenTokens:
    """A grammar of even ids."""

    def __init__(self) -> None:
        self.said: list[int] = []

    def compile(self, grammar: str, end_token_ids: Collection[int], max_tokens: int) -> EvenTokens:
        return EvenTokens()

    failure = None
    was_cut = False

    def next_masks(self, draft: Sequence[int]) -> list[TokenMask]:
        return [b"\x55" * (4 * -(-VOCAB_SIZE // 32))] * (1 + len(draft))

    def num_allowed(self, draft: Sequence[int]) -> int:
        return next((n for n, token in enumerate(draft) if token % 2), len(draft))

    def forced(self, most: int) -> list[int]:
        return []

    def advance(self, token_id: int) -> None:
        self.said.append(token_id)

    @property
    def is_complete(self) -> bool:
        return len(self.said) == 9


REPEATED = [7, 8, 9, 10] * 6  # makes for drafts
REQUESTS: list[tuple[list[int], dict[str, Any], str | None]] = [
    (make_prompts(3)[0], {}, None),
    (make_prompts(50)[0], {"logprobs": 3}, None),
    (make_prompts(70)[0], {"prompt_logprobs": 2}, None),
    (make_prompts(20)[0], {"temperature": 1.0, "seed": 3, "top_p": 0.8, "top_k": 20}, None),
    (REPEATED, {"repetition_penalty": 1.2, "allowed_token_ids": frozenset({7, 8, 9})}, None),
    (REPEATED, {"allowed_token_ids": frozenset({7, 8})}, None),
    (make_prompts(9)[0], {"temperature": 0.8, "seed": 4, "typical_p": 0.6, "min_p": 0.01}, None),
    (
        make_prompts(12)[0],
        {"logit_bias": {3: 2.0}, "min_tokens": 4, "frequency_penalty": 0.4},
        None,
    ),
    (make_prompts(8)[0], {"bad_words": ((5, 6), (7,))}, None),
    (make_prompts(15)[0], {}, "even"),
]


class Guarded:
    """An engine, its launches under guard, and what came of it."""

    def __init__(
        self,
        family: str,
        num_drafts: int,
        path: ExecutionPath | None = None,
        memory: FakeMemory | None = None,
    ) -> None:
        config = EngineConfig(
            max_num_seqs=8,
            max_num_batched_tokens=64,
            max_model_len=128,
            num_blocks=80,
            num_speculative_tokens=num_drafts,
            has_prefix_cache=False,
            enforce_eager=True,
        )
        self.batches: list[ScheduledBatch] = []
        self.num_copies = 0
        model = make_model((FUSED | UNFUSED)[family])
        self.engine = Engine(model, config, constraints=EvenTokens(), path=path)
        launch = self.engine._runner.launch

        def guarded(batch: ScheduledBatch) -> Any:
            self.batches.append(batch)
            if memory is None:
                return launch(batch)
            waits = NoWaits(memory)
            with NoReads(), waits:
                pending = launch(batch)
            self.num_copies += waits.num_copies
            return pending

        self.engine._runner.launch = guarded  # type: ignore[method-assign]

    def run(self) -> dict[int, list[Any]]:
        """Run all requests; what each was told, token by token."""
        told: dict[int, list[Any]] = {}
        for number, (prompt, settings, grammar) in enumerate(REQUESTS):
            told[number] = []
            params = SamplingParams(max_tokens=NUM_TOKENS, **({"temperature": 0} | settings))
            self.engine.add(
                SequenceRequest(
                    sequence_id=number,
                    prompt_token_ids=tuple(prompt),
                    params=params,
                    grammar=grammar,
                )
            )
        while self.engine.has_work:
            for output in self.engine.step():
                if isinstance(output, PromptLogprobs):
                    told[output.sequence_id] += [rounded(token) for token in output.tokens]
                elif not isinstance(output, SequenceStarted):
                    assert isinstance(output, TokenOutput), output
                    told[output.sequence_id].append((output.token_id, rounded(output.logprobs)))
        self.engine.scheduler.check()
        return told


class Near(float):
    """A logprob, equal to those that another order of sums may give."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(float(self) - float(other)) < 1e-4

    def __hash__(self) -> int:
        return 0  # those that are near each other may be equal


def rounded(token: TokenLogprobs | None) -> Any:
    """Logprobs without what another order of sums may change."""
    if token is None:
        return None
    return Near(token.logprob), [(token_id, Near(at)) for token_id, at in token.top]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """The pinned memory of runners that are made."""
    memory = FakeMemory()
    monkeypatch.setattr(model_runner, "memory_beside", lambda device: memory)
    return memory


@pytest.fixture(autouse=True)
def eager_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers this short would end before a rare plan was worth it."""
    monkeypatch.setattr(decode_graphs, "MIN_USES", 2)


def on_the_gpus_path(*, is_recorded: bool) -> ExecutionPath:
    recorder = ReplayedRecorder() if is_recorded else None
    return ExecutionPath(step_kernels("torch"), recorder, is_overlapped=True)


@pytest.mark.parametrize(
    ("family", "num_drafts", "is_recorded"),
    [("llama", 3, False), ("llama", 0, True), ("phi", 0, True)],
)
def test_no_step_waits_and_all_get_what_they_get_on_the_cpus_own_path(
    memory: FakeMemory, family: str, num_drafts: int, *, is_recorded: bool
):
    """Chunks, decodes, drafts, penalties, masks, bans, logprobs of tokens and of prompts."""
    guarded = Guarded(family, num_drafts, on_the_gpus_path(is_recorded=is_recorded), memory)
    assert guarded.run() == Guarded(family, num_drafts).run()
    chunks = [chunk for batch in guarded.batches for chunk in batch.chunks]
    assert any(chunk.num_drafts for chunk in chunks) == bool(num_drafts)
    assert any(chunk.prompt_targets for chunk in chunks)
    assert any(chunk.masks for chunk in chunks)
    assert any(extra.banned_token_ids for chunk in chunks for extra in chunk.extras)
    assert num_drafts or any(batch.decodes and batch.chunks for batch in guarded.batches)
    assert guarded.num_copies > 3 * len(guarded.batches)
    # One wait a step, for what it gave.
    assert memory.said.count("waited") <= len(guarded.batches)
    runner = guarded.engine._runner
    assert isinstance(runner, ModelRunner)
    assert isinstance(runner._to_device, HostRing)
    assert runner._to_device.num_waits == 0
    graphs = runner._graphs
    assert (graphs is not None) == is_recorded
    if graphs is not None:
        assert graphs.num_replays.total() > 5


def test_a_step_is_queued_before_the_one_before_it_is_read(memory: FakeMemory):
    Guarded("llama", 0, on_the_gpus_path(is_recorded=False), memory).run()
    said = "".join(word[0] for word in memory.said)
    # Each step records two events: of what it was sent, and of what it gave.
    assert "rrrrw" in said
    assert "rrrrrr" not in said


@pytest.mark.parametrize(
    "work",
    [
        lambda device, memory: device.sum().item(),
        lambda device, memory: device.tolist(),
        lambda device, memory: bool(device.any()),
        lambda device, memory: device.nonzero(),
        lambda device, memory: device[device > 1],
        lambda device, memory: torch.equal(device, device),
        lambda device, memory: device.cpu(),
        lambda device, memory: torch.tensor([1, 2]) + device[:2],
        lambda device, memory: torch.from_numpy(np.arange(3)) + device,
        lambda device, memory: device.copy_(torch.from_numpy(np.arange(3))),
        lambda device, memory: memory.copy_(device),
        lambda device, memory: memory + device,
        lambda device, memory: memory.to("cpu", copy=True),
    ],
)
def test_the_guard_finds_each_kind_of_wait(work: Any):
    memory = FakeMemory()
    device, pinned = torch.arange(3), memory.buffer(24).view(torch.int64)
    with pytest.raises(HostWaitError), NoReads(), NoWaits(memory):
        work(device, pinned)
