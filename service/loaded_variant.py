"""Where a served variant's models come from: an engine that has loaded it, and its text side.

The text side (tokenizer, chat template) is read once in the API's process, from the folder that the
engine names, and kept from one life of the engine to the next.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgspec import structs

from service import garbage
from service.model_description import ModelDescription
from service.model_text import ModelText, read_model_text
from service.served_model import ServedModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.engine_hosts import EngineHost, OnProgress


class LoadedVariant:
    """Starts engines for one variant, and joins each with the variant's text."""

    def __init__(
        self, name: str, variant: str, start: Callable[[OnProgress], Awaitable[EngineHost]]
    ) -> None:
        self.variant = variant
        self._name = name
        self._start = start
        self._description: ModelDescription | None = None  # of what `_text` was read for
        self._text: ModelText | None = None

    async def start(self, on_progress: OnProgress) -> EngineHost:
        """Start an engine."""
        return await self._start(on_progress)

    async def served(self, host: EngineHost) -> ServedModel:
        """Wait until an engine takes work; return it with its text."""
        ready = await host.client.ready()
        description = ModelDescription.decode(ready.about)
        text = await self._read_text(description)
        template = text.chat_template
        turn_ends = frozenset() if template is None else template.stop_token_ids
        return ServedModel(
            name=self._name,
            created=int(time.time()),
            engine=host.client,
            tokenizer=text.tokenizer,
            chat_template=template,
            chat_refusal=text.chat_refusal,
            defaults=description.defaults,
            stop_token_ids=description.defaults.stop_token_ids | turn_ends,
            identity=text.identity,
            self_test=description.self_test,
        )

    async def close(self) -> None:
        """End what runs for the text."""
        text, self._text = self._text, None
        if text is not None:
            await asyncio.to_thread(text.close)  # waits for a template that is being rendered
            garbage.settle()

    async def _read_text(self, description: ModelDescription) -> ModelText:
        # Everything but the self-test, which tells its own time, is what the text was read for.
        description = structs.replace(description, self_test=None)
        if self._text is None or description != self._description:
            await self.close()
            self._text = await asyncio.to_thread(read_model_text, description)
            self._description = description
            garbage.settle()
        return self._text
