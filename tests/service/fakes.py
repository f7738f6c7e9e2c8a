"""An engine that says what it is told to, and servers that run with it on real sockets.

Light to import: whole processes start with it, and need neither torch nor Transformers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from engine.errors import EngineDeadError, InvalidTokenError
from engine.outputs import FinishReason, TokenLogprobs, TokenOutput
from engine.sampling_params import SamplingParams
from engine.statistics import Latencies, TokenTimes
from engine.transport.backlog import Backlog, QueueLimits
from engine.transport.wire import IntegrityReport
from loaders.reports.self_test import Check, SelfTestReport
from service.api.application import create_app
from service.api.context import ApiContext, Models
from service.api.event_stream import StreamTiming
from service.api.inner_calls import InnerCalls
from service.api.large_bodies import LargeBodies
from service.api.requests import RequestLimits
from service.errors import ModelNotFoundError, UnavailableError
from service.server.changes import Changes
from service.server.front import Front
from service.server.lifecycle import Lifecycle, Phase
from service.serving.served_model import Identity, ServedModel
from service.team.keys import ApiKeys
from service.text.infilling.families import STARCODER
from service.text.infilling.infilling import Infilling
from service.text.template_choice import TemplateOrigin
from service.text.templates import RenderedPrompt
from service.variants.variant import VariantState, VariantStatus

if TYPE_CHECKING:
    from contextlib import ExitStack

    import openai
    from transformers import PreTrainedTokenizerFast

    from engine.request import Terms
    from engine.statistics import EngineStatistics, LiveCheckStatistics
    from engine.transport.backlog import Place
    from engine.transport.client import Submission
    from loaders.reports.suspicion import Suspicion
    from service.batches.keeper import BatchKeeper
    from service.observation.observation import Observation
    from service.text.render_options import RenderOptions
    from service.text.template_check import TemplateFinding
    from service.text.templates import ChatTemplate

MODEL = "owner/name:gptq-4bit-32g@x"
VOCAB_SIZE = 512
END = 1  # `</s>` of the tiny tokenizer
TURN_END = 3

Script = Callable[[Sequence[int], SamplingParams], Sequence[int]]
Logprobs = Callable[[int, SamplingParams], TokenLogprobs]


@dataclass(eq=False)
class FakeStream:
    """The tokens of one sequence; counts as running until it ends or is closed."""

    engine: FakeEngine
    sequence_id: int
    token_ids: list[int]
    params: SamplingParams
    given: int = 0
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    times: TokenTimes = field(default_factory=lambda: TokenTimes(time.monotonic()))

    async def accepted(self) -> None:
        """Refuse every grammar where that is asked of the engine."""
        if self.engine.refused_grammar is not None:
            self.engine.running.discard(self)
            raise self.engine.refused_grammar

    async def take(self) -> list[TokenOutput]:
        if self not in self.engine.running:
            return []
        await asyncio.sleep(self.engine.delay_s)
        outputs: list[TokenOutput] = []
        while len(outputs) < self.engine.num_together and self in self.engine.running:
            outputs.append(self._next())
        return outputs

    def _next(self) -> TokenOutput:
        if self.engine.fails_after is not None and self.given >= self.engine.fails_after:
            self.engine.running.discard(self)
            raise self.engine.failure
        if self.given == 0:
            self.engine.latencies.note_start(self.times, self.engine.queue_s)
        self.engine.latencies.note_token(self.times, time.monotonic())
        token_id = self.token_ids[min(self.given, len(self.token_ids) - 1)]
        self.given += 1
        self.engine.num_tokens += 1
        reason = None
        if token_id in self.params.end_token_ids:
            reason = FinishReason.STOP
        elif self.given == self.params.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self.engine.running.discard(self)
        logprobs = None
        if self.engine.logprobs is not None and self.params.logprobs is not None:
            logprobs = self.engine.logprobs(token_id, self.params)
        return TokenOutput(self.sequence_id, token_id, logprobs, reason)

    async def aclose(self) -> None:
        if self in self.engine.running:
            self.engine.running.discard(self)
            self.engine.num_aborted += 1


@dataclass(eq=False)  # engines are told apart, as real ones are
class FakeEngine:
    """Answers every prompt with the tokens its script gives, at a given pace."""

    script: Script
    max_model_len: int = 256
    delay_s: float = 0.0
    is_alive: bool = True
    fails_after: int | None = None  # tokens of each sequence
    failure: Exception = field(default_factory=lambda: EngineDeadError("the engine has stopped"))
    submitted: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    running: set[FakeStream] = field(default_factory=set)
    num_aborted: int = 0
    num_tokens: int = 0
    callers: list[str] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)  # of each request
    groups: list[int | None] = field(default_factory=list)
    grammars: list[str | None] = field(default_factory=list)  # of each sequence
    refused_grammar: Exception | None = None  # what reading any grammar comes to
    refusal: Exception | None = None  # of every request
    logprobs: Logprobs | None = None  # of a token, for whoever asks; None tells none
    num_cached_tokens: int = 0  # of every prompt
    num_together: int = 1  # tokens that come at once
    queue_s: float = 0.0  # that each sequence is said to have waited
    statistics: EngineStatistics | None = None
    latencies: Latencies = field(default_factory=Latencies)
    live_check: LiveCheckStatistics | None = None
    backlog: Backlog = field(default_factory=lambda: Backlog(QueueLimits()))
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def require_room(self, num_ahead: int = 0) -> None:
        self.backlog.require_room(num_ahead)

    def reserve(self, num_seqs: int, *, is_background: bool = False) -> Place:
        if not self.is_alive:
            raise EngineDeadError("the engine has stopped")
        return self.backlog.reserve(num_seqs, is_background=is_background)

    def submit(
        self, submissions: Sequence[Submission], *, terms: Terms, place: Place | None = None
    ) -> list[FakeStream]:
        if place is not None:
            place.release()
        if self.refusal is not None:
            raise self.refusal
        if not self.is_alive:
            raise EngineDeadError("the engine has stopped")
        if any(max(submission.prompt_token_ids) >= VOCAB_SIZE for submission in submissions):
            raise InvalidTokenError(f"this model's ids are 0 to {VOCAB_SIZE - 1}")
        self.terms.append(terms)
        return [self._run(submission, terms.caller) for submission in submissions]

    def _run(self, submission: Submission, caller: str) -> FakeStream:
        prompt, params = submission.prompt_token_ids, submission.params
        self.submitted.append((list(prompt), params))
        self.callers.append(caller)
        self.groups.append(submission.group)
        self.grammars.append(submission.grammar)
        token_ids = [*self.script(prompt, params), END]
        stream = FakeStream(self, next(self._ids), token_ids, params)
        stream.num_cached_tokens = self.num_cached_tokens
        if self.logprobs is not None and params.prompt_logprobs is not None:
            stream.prompt_logprobs = [self.logprobs(token_id, params) for token_id in prompt[1:]]
        self.running.add(stream)
        return stream

    async def check_integrity(self) -> IntegrityReport:
        return IntegrityReport(not self.running, None)


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint recommends; nothing, unless said."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop_token_ids: frozenset[int] = frozenset({END})


class ByteTokenizer:
    """A token a byte, after one `<s>`."""

    bos_token, eos_token = "<s>", "</s>"
    bos_token_id, eos_token_id = 0, END

    def __init__(self, more_pieces: Sequence[str] = ()) -> None:
        """more_pieces: special ones, whose ids follow those of the bytes."""
        pieces = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
            vocabulary[letter] = len(vocabulary)
        self.backend_tokenizer = Tokenizer(models.BPE(vocabulary, []))
        self.backend_tokenizer.add_special_tokens([*pieces, *more_pieces])
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


GAP_PIECES = (
    *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"),
    *("<file_sep>", "<repo_name>", "<|endoftext|>"),
)


def gap_tokenizer() -> ByteTokenizer:
    """One that knows StarCoder's pieces around a gap."""
    return ByteTokenizer(GAP_PIECES)


def gap_infilling(tokenizer: ByteTokenizer) -> Infilling:
    return Infilling(tokenizer, STARCODER)


class PlainTemplate:
    """One line a turn; no marks."""

    name = "plain"
    origin = TemplateOrigin.FAMILY
    source = "plain"
    takes_tools = takes_tool_turns = False
    traits = SimpleNamespace(takes_system=True)
    reasoning_marks: tuple[str, str] | None = None
    kwargs_names = frozenset[str]()
    stop_token_ids = frozenset({TURN_END})

    def __init__(self, tokenizer: PreTrainedTokenizerFast | ByteTokenizer) -> None:
        self._tokenizer = tokenizer

    def reads(self, name: str) -> bool:
        return False

    def render(
        self, messages: Sequence[Mapping[str, str]], options: RenderOptions | None = None
    ) -> list[int]:
        text = self.render_text(messages, options)
        return [0, *self._tokenizer.encode(text, add_special_tokens=False)]

    def render_prompt(
        self,
        messages: Sequence[Mapping[str, str]],
        options: RenderOptions | None = None,
        tools: Sequence[object] = (),
    ) -> RenderedPrompt:
        return RenderedPrompt(self.render(messages, options), opens_reasoning=False)

    def render_text(
        self,
        messages: Sequence[Mapping[str, str]],
        options: RenderOptions | None = None,
        tools: Sequence[object] = (),
    ) -> str:
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in messages)

    def close(self) -> None:
        """Nothing runs."""


def says(tokenizer: PreTrainedTokenizerFast | ByteTokenizer, text: str) -> Script:
    """A script that answers any prompt with this text."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return lambda prompt_token_ids, params: token_ids


SELF_TEST = SelfTestReport(
    passed=True,
    checks=(Check("model.layers.0.mlp.up_proj", True, "as it should", 0.3, "reference"),),
    backend="reference",
    seconds=0.5,
    finished=1_700_000_000,
)


def served_model(
    engine: FakeEngine,
    tokenizer: PreTrainedTokenizerFast | ByteTokenizer,
    defaults: Defaults | None = None,
    chat_refusal: str | None = None,
    template_findings: tuple[TemplateFinding, ...] = (),
    chat_template: ChatTemplate | None = None,
    infilling: Infilling | None = None,
) -> ServedModel:
    return ServedModel(
        name=MODEL,
        created=1_700_000_000,
        engine=engine,
        tokenizer=tokenizer,
        chat_template=None if chat_refusal else chat_template or PlainTemplate(tokenizer),
        chat_refusal=chat_refusal,
        defaults=defaults or Defaults(),
        stop_token_ids=frozenset({END, TURN_END}),
        identity=Identity(
            revision="0123abc",
            quantization="gptq 4-bit group 32",
            kernel="reference",
            fingerprint="fp_0123456789ab",
            record={"commit": "0123abc"},
        ),
        self_test=SELF_TEST,
        template_findings=template_findings,
        infilling=infilling,
        infilling_refusal=None if infilling else "it has no pieces that mark a gap",
    )


class FakeHandle:
    """Where a fake engine runs; lives_s: then it dies."""

    pid = 1
    can_be_replaced = True

    def __init__(self, engine: FakeEngine, *, lives_s: float | None = None) -> None:
        self.engine = engine
        self.client = SimpleNamespace(death=None)
        self.is_stopped = asyncio.Event()
        self.how = "it was stopped"
        if lives_s is not None:
            asyncio.get_running_loop().call_later(lives_s, self.die, "it died")

    def die(self, how: str, error: EngineDeadError | None = None) -> None:
        self.how = how
        self.client.death = error
        self.engine.is_alive = False
        self.is_stopped.set()

    async def ended(self) -> str:
        await self.is_stopped.wait()
        return self.how

    async def stop(self) -> None:
        self.is_stopped.set()


@dataclass
class FakeVariant:
    """One variant, as it is observed."""

    name: str
    status: VariantStatus
    served: ServedModel | None


@dataclass
class FakeModels:
    """One variant, loaded or still loading."""

    served: ServedModel | None
    suspicions: tuple[Suspicion, ...] = ()
    changes: Changes = field(default_factory=Changes)  # that are never announced

    @property
    def _state(self) -> VariantState:
        if self.served is None:
            return VariantState.LOADING
        return VariantState.SERVING if self.served.engine.is_alive else VariantState.FAILED

    @property
    def phase(self) -> Phase:
        return Phase(self._state.value)

    @property
    def is_hopeless(self) -> bool:
        return self._state is VariantState.FAILED

    @property
    def statuses(self) -> list[VariantStatus]:
        is_loading = self.served is None
        return [
            VariantStatus(
                name=MODEL,
                variant=MODEL,
                created=1,
                state=self._state,
                phase="reading the weights" if is_loading else None,
                percent=43.4 if is_loading else None,
                reason=None,
                degraded=None,
                num_restarts=0,
                num_requests=0,
                pid=None,
                statistics=None if self.served is None else self.served.engine.statistics,
                self_test=None if is_loading else SELF_TEST,
                suspicions=self.suspicions,
                live_check=None if self.served is None else self.served.engine.live_check,
            )
        ]

    @property
    def variants(self) -> list[FakeVariant]:
        return [FakeVariant(MODEL, self.statuses[0], self.served)]

    def resolve(self, name: str | None) -> str:
        return MODEL if name in (None, "dummy") else name

    def find(self, name: str) -> tuple[VariantStatus, ServedModel | None]:
        if name != MODEL:
            raise ModelNotFoundError(
                f"no such model is served; this server serves {MODEL!r}", param="model"
            )
        return self.statuses[0], self.served

    def require_room(self, num_ahead: int = 0) -> None:
        if self.served is not None:
            self.served.engine.require_room(num_ahead)

    async def acquire(self, name: str, until_answered: ExitStack) -> ServedModel:
        status, served = self.find(name)
        if status.state is not VariantState.SERVING or served is None:
            raise UnavailableError(f"{name} is {status.state.value}", retry_after_s=5)
        return served


LIMITS = RequestLimits(
    max_choices=8, max_prompts=4, max_messages=2048, max_stop_strings=16, max_stop_bytes=256
)


def api_context(
    lifecycle: Lifecycle,
    models: Models,
    *,
    keep_alive_interval_s: float = 15,
    stall_limit_s: float = 30,
    max_body_bytes: int = 4 * 1024 * 1024,
    limits: RequestLimits = LIMITS,
    max_bodies_bytes: int = 64 * 1024 * 1024,
    batches: BatchKeeper | None = None,
) -> ApiContext:
    return ApiContext(
        lifecycle=lifecycle,
        models=models,
        limits=limits,
        timing=StreamTiming(
            keep_alive_interval_s=keep_alive_interval_s, stall_limit_s=stall_limit_s
        ),
        max_body_bytes=max_body_bytes,
        bodies=LargeBodies(max_bodies_bytes),
        batches=batches,
    )


@dataclass(frozen=True)
class RunningServer:
    """A server on a real socket, in a thread of this process."""

    port: int
    lifecycle: Lifecycle

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def async_client(self, key: str = "none") -> openai.AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)


@contextlib.contextmanager
def running_server(
    engine: FakeEngine | None,
    tokenizer: PreTrainedTokenizerFast | ByteTokenizer,
    *,
    key: str | None = None,
    defaults: Defaults | None = None,
    chat_refusal: str | None = None,
    infilling: Infilling | None = None,
    keep_alive_interval_s: float = 15,
    stall_limit_s: float = 30,
    max_body_bytes: int = 4 * 1024 * 1024,
    suspicions: tuple[Suspicion, ...] = (),
    limits: RequestLimits = LIMITS,
    template_findings: tuple[TemplateFinding, ...] = (),
    chat_template: ChatTemplate | None = None,
    metrics_token: str | None = None,
    observation: Observation | None = None,
    front: Front | None = None,
    max_bodies_bytes: int = 64 * 1024 * 1024,
    batches: BatchKeeper | None = None,
) -> Iterator[RunningServer]:
    """Run a server; engine: None leaves it loading. batches: of a folder that is empty yet."""
    served = None
    if engine is not None:
        served = served_model(
            engine,
            tokenizer,
            defaults,
            chat_refusal,
            template_findings=template_findings,
            chat_template=chat_template,
            infilling=infilling,
        )
    models = FakeModels(served, suspicions)
    lifecycle = Lifecycle(models)
    context = api_context(
        lifecycle,
        models,
        keep_alive_interval_s=keep_alive_interval_s,
        stall_limit_s=stall_limit_s,
        max_body_bytes=max_body_bytes,
        limits=limits,
        max_bodies_bytes=max_bodies_bytes,
        batches=batches,
    )
    if observation is not None:
        context = replace(context, observation=observation)
    app = create_app(
        context,
        None if key is None else ApiKeys(key),
        metrics_keys=None if metrics_token is None else ApiKeys(metrics_token, "metrics"),
    )
    if batches is not None:
        asyncio.run(batches.start(InnerCalls(app)))  # opens nothing yet
    server = uvicorn.Server((front or Front()).config(app))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield RunningServer(listener.getsockname()[1], lifecycle)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def wait_until(is_so: Callable[[], bool], limit_s: float = 5) -> float:
    """Wait for something; return how many seconds it took."""
    started = time.monotonic()
    while not is_so():
        if time.monotonic() - started > limit_s:
            raise TimeoutError(f"not so within {limit_s} s")
        time.sleep(0.002)
    return time.monotonic() - started
