"""Where typed answers are written that may be large."""

from __future__ import annotations

import asyncio
import threading

from pydantic import BaseModel, field_serializer

from service.api.responses import model_response


class Answer(BaseModel):
    """Tells which thread wrote it."""

    thread: int = 0

    @field_serializer("thread")
    def _own(self, thread: int) -> int:
        return threading.get_ident()


def test_they_are_written_beside_the_event_loop():
    response = asyncio.run(model_response(Answer(thread=1), {"x-model-revision": "1"}))
    assert int(bytes(response.body).removeprefix(b'{"thread":').removesuffix(b"}")) != (
        threading.get_ident()
    )
    assert response.headers["x-model-revision"] == "1"
