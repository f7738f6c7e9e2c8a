"""Where a served variant's models come from: an engine that has loaded it, and its text side.

The text side (tokenizer, chat template) is read once in the API's process, from the folder that the
engine names, and kept from one life of the engine to the next.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from msgspec import structs

from engine.errors import EngineDeadError
from service.errors import FallbackError
from service.server import garbage
from service.serving.served_model import ServedModel
from service.variants.text import ModelText, read_model_text
from service.worker_protocol.load_attempt import LoadAttempt
from service.worker_protocol.model_description import ModelDescription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.errors import LiveCheckError
    from engine.transport.wire import Progress
    from loaders.reports.suspicion import Suspicion
    from service.variants.fallback import FallbackPolicy
    from service.variants.handles import EngineHandle, OnProgress
    from service.worker_protocol.load_attempt import LoadRequest

log = structlog.get_logger(__name__)


class LoadedVariant:
    """Starts engines for one variant, and joins each with the variant's text."""

    def __init__(
        self,
        name: str,
        variant: str,
        fallback: FallbackPolicy,
        start: Callable[[LoadRequest, OnProgress], Awaitable[EngineHandle]],
        *,
        chat_template: str | None = None,
        infill_order: str | None = None,
    ) -> None:
        """chat_template, infill_order: the operator's choice, by name (or as a file)."""
        self._asked = variant
        self._fallback = fallback
        self._name = name
        self._start = start
        self._chat_template = chat_template
        self._infill_order = infill_order
        self._description: ModelDescription | None = None  # of what `_text` was read for
        self._text: ModelText | None = None
        # By the engine itself, in words: a shorter context, kernels that its device cannot run.
        self._shortened: str | None = None
        self._unsupported: str | None = None
        self._suspicions: tuple[Suspicion, ...] = ()  # of what was loaded last

    def reset(self) -> None:
        """Forget what earlier lives gave up."""
        self._fallback.reset()
        self._shortened = self._unsupported = None
        self._suspicions = ()

    async def start(self, on_progress: OnProgress) -> EngineHandle:

        def note(progress: Progress) -> None:
            if progress.load_attempt is not None:
                self._note_attempt(LoadAttempt.decode(progress.load_attempt))
            on_progress(progress)

        return await self._start(self._fallback.load_request, note)

    async def wait_ready(self, handle: EngineHandle) -> ServedModel:
        """Wait until an engine takes work; return it with its text.

        Raises FallbackError where another way to load the variant is left.
        """
        try:
            ready = await handle.client.ready()
        except EngineDeadError as error:
            if (given_up := self._fallback.next_attempt(error)) is None:
                raise
            raise FallbackError(f"{error}; trying {given_up}") from error
        self._fallback.note_success()
        garbage.sweep()
        description = ModelDescription.decode(ready.model_description)
        self._shortened = description.shortened
        self._unsupported = description.unsupported
        self._suspicions = description.suspicions
        text = await self._read_text(description)
        template = text.chat_template
        turn_ends = frozenset() if template is None else template.stop_token_ids
        return ServedModel(
            name=self._name,
            created=int(time.time()),
            engine=handle.client,
            tokenizer=text.tokenizer,
            chat_template=template,
            chat_refusal=text.chat_refusal,
            template_findings=text.template_findings,
            defaults=description.defaults,
            stop_token_ids=description.defaults.stop_token_ids | turn_ends,
            identity=text.identity,
            self_test=description.self_test,
            memory=description.memory,
            cache=description.cache,
            infilling=text.infilling,
            infilling_refusal=text.infilling_refusal,
        )

    def fall_back(self, error: LiveCheckError) -> str:
        """Choose what the next engine does without; say so, and why the one before it ended."""
        if (given_up := self._fallback.next_attempt(error)) is None:
            return str(error)
        reason = f"{error}; trying {given_up}"
        log.warning("degraded", model=self._name, reason=reason)
        return reason

    @property
    def variant(self) -> str:
        """What is served: as the settings name it, or the branch that was chosen."""
        return self._fallback.load_request.variant or self._asked

    @property
    def degraded(self) -> str | None:
        """What was given up so that it could be loaded."""
        reasons = (self._fallback.degraded, self._unsupported, self._shortened)
        return "; ".join(reason for reason in reasons if reason) or None

    @property
    def suspicions(self) -> tuple[Suspicion, ...]:
        """Reasons to doubt that the files of what was loaded last were read right."""
        return self._suspicions

    def _note_attempt(self, attempt: LoadAttempt) -> None:
        if attempt.reason is not None and self._fallback.load_request.variant is None:
            log.info(
                "variant_chosen", model=self._name, variant=attempt.variant, reason=attempt.reason
            )
        self._fallback.note(attempt)

    async def close(self) -> None:
        """End what runs for the text."""
        text, self._text = self._text, None
        if text is not None:
            await asyncio.to_thread(text.close)  # waits for a template that is being rendered
            garbage.settle()

    async def _read_text(self, description: ModelDescription) -> ModelText:
        # Everything but what was measured, each time anew, is what the text was read for.
        description = structs.replace(
            description, self_test=None, memory=None, cache=None, suspicions=()
        )
        if self._text is None or description != self._description:
            await self.close()
            self._text = await asyncio.to_thread(
                read_model_text, description, self._chat_template, self._infill_order
            )
            self._description = description
            garbage.settle()
        return self._text
