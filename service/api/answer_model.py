"""What every typed answer is made of; what a request's body is lies in `service.api.requests`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AnswerModel(BaseModel):
    """An object of an answer; only what was set is sent."""

    model_config = ConfigDict(protected_namespaces=(), extra="forbid")
