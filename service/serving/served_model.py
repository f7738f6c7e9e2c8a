"""One variant as the API sees it: its engine, its text, its recommended settings, its identity.

Made anew with each life of its engine; routes only read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from service.text.errors import ChatNotSupportedError, InfillingNotSupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerFast

    from engine.outputs import TokenLogprobs, TokenOutput
    from engine.request import Terms
    from engine.statistics import EngineStatistics, Latencies, LiveCheckStatistics, TokenTimes
    from engine.transport.backlog import Place
    from engine.transport.client import Submission
    from engine.transport.wire import IntegrityReport
    from loaders.checkpoint.generation_defaults import GenerationDefaults
    from loaders.reports.self_test import SelfTestReport
    from service.text.infilling.infilling import Infilling
    from service.text.template_check import TemplateFinding
    from service.text.templates import ChatTemplate
    from service.worker_protocol.model_description import CacheDescription, MemoryReport


class TokenStream(Protocol):
    """The tokens of one sequence, as they come."""

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs]:
        """What was asked for of the prompt, from its second token on; complete before any token."""

    @property
    def num_cached_tokens(self) -> int:
        """Count the prompt's tokens that were in the prefix cache; known before any token.

        Choices of one request find each other's: the first one's number is the request's.
        """

    @property
    def times(self) -> TokenTimes:
        """When its tokens came."""

    async def accepted(self) -> None:
        """Wait until the sequence's grammar, if it has one, has been read; raise EngineError."""

    async def take(self) -> Sequence[TokenOutput]:
        """Wait for outputs and return all that have come; the last of all has a finish_reason."""

    async def aclose(self) -> None:
        """Abort the sequence, if it still runs."""


class TokenEngine(Protocol):
    """What the service needs of an engine; `engine.transport.client.EngineClient` is one."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes work."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer together."""

    @property
    def statistics(self) -> EngineStatistics | None:
        """What it last reported of itself."""

    @property
    def latencies(self) -> Latencies:
        """How long its sequences waited and its tokens took."""

    @property
    def live_check(self) -> LiveCheckStatistics | None:
        """How far the check of its layers has come; None where none is made."""

    def require_room(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where no more may wait, another EngineError where nothing runs."""

    def reserve(self, num_seqs: int, *, is_background: bool = False) -> Place:
        """Keep room in the queue for so many sequences; raise EngineError where there is none.

        is_background: those of batches need none, and take none.
        """

    def submit(
        self, submissions: Sequence[Submission], *, terms: Terms, place: Place | None = None
    ) -> Sequence[TokenStream]:
        """Check and submit at once, all or none; raise EngineError if they cannot run.

        place: what was reserved for them.
        """

    async def check_integrity(self) -> IntegrityReport:
        """Ask it whether its accounting is right."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an answer came from, as clients see it."""

    revision: str  # the commit, else the branch, else what kind of thing it is
    quantization: str
    kernel: str  # the kernel backends in use
    fingerprint: str  # short hash of all that may change an answer
    record: Mapping[str, object]  # the full story, for /v1/models/{id}

    @property
    def headers(self) -> dict[str, str]:
        """Return the response headers that name where an answer came from."""
        return {
            "x-model-revision": self.revision,
            "x-quantization": self.quantization,
            "x-kernel": self.kernel,
        }


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One variant, ready to answer."""

    name: str  # what clients send as `model`
    created: int  # when it became ready, seconds since 1970
    engine: TokenEngine
    tokenizer: PreTrainedTokenizerFast
    chat_template: ChatTemplate | None  # None where the variant cannot chat
    chat_refusal: str | None  # why it cannot, for people
    defaults: GenerationDefaults
    stop_token_ids: frozenset[int]  # of the generation settings and the template together
    identity: Identity
    self_test: SelfTestReport | None = None  # of its engine's load
    memory: MemoryReport | None = None
    cache: CacheDescription | None = None
    infilling: Infilling | None = None  # None where the variant cannot infill
    infilling_refusal: str | None = None  # why it cannot, for people
    template_findings: tuple[TemplateFinding, ...] = ()  # reasons to doubt the chat template

    def require_chat_template(self) -> ChatTemplate:
        """Return the template, or raise ChatNotSupportedError."""
        if self.chat_template is None:
            raise ChatNotSupportedError(self.chat_refusal)
        return self.chat_template

    def require_infilling(self) -> Infilling:
        """Return how it infills, or raise InfillingNotSupportedError."""
        if self.infilling is None:
            raise InfillingNotSupportedError(self.infilling_refusal)
        return self.infilling
