"""One variant as the API sees it: its engine, its text, its recommended settings, its identity.

Put together by `service.app`; routes only read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from service.text.errors import ChatNotSupportedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerFast

    from engine.outputs import TokenOutput
    from engine.sampling_params import SamplingParams
    from loaders.load import GenerationDefaults
    from service.text.templates import ChatTemplate


class TokenStream(Protocol):
    """The tokens of one sequence, as they come."""

    def __aiter__(self) -> AsyncIterator[TokenOutput]:
        """Iterate over the outputs; the last one has a finish_reason."""

    async def aclose(self) -> None:
        """Abort the sequence, if it still runs."""


class TokenEngine(Protocol):
    """What the service needs of an engine; `engine.client.EngineClient` is one."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes work."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer together."""

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        caller: str | None = None,
    ) -> TokenStream:
        """Check and submit at once; raise EngineError if it cannot run."""

    def stop(self) -> None:
        """End it; open sequences fail."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an answer came from, as clients are told."""

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

    def require_chat_template(self) -> ChatTemplate:
        """Return the template, or raise ChatNotSupportedError."""
        if self.chat_template is None:
            raise ChatNotSupportedError(self.chat_refusal)
        return self.chat_template

    def close(self) -> None:
        """End the engine and whatever else runs for this model."""
        self.engine.stop()
        if self.chat_template is not None:
            self.chat_template.close()
