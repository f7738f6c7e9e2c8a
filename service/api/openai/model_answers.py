"""What /v1/models answers: its typed models, and how they are filled in.

OpenAI's fields, vLLM's beside them, Anthropic's where its clients ask, and our own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pydantic import Field

# Read by pydantic, which makes schemas of them.
from engine.statistics import LiveCheckStatistics
from loaders.reports.self_test import SelfTestReport
from service.api.answer_model import AnswerModel
from service.text.template_check import TemplateFinding

if TYPE_CHECKING:
    from service.serving.served_model import ServedModel
    from service.variants.variant import VariantStatus

_FOR_ANTHROPIC = "With the header anthropic-version."


class Capabilities(AnswerModel):
    """What a variant can be asked for."""

    completion: bool
    chat: bool
    infilling: bool
    tools: bool = Field(description="Of a template that knows of none, by a prompt in words.")


class TemplateInfo(AnswerModel):
    """How a variant's dialogues are written."""

    name: str | None = Field(description="Whose template it is; null where it cannot chat.")
    source: str | None = Field(description="Where it was found.")
    findings: list[TemplateFinding] = Field(description="Reasons to doubt it.")


class InfillingInfo(AnswerModel):
    """How a variant fills in the middle."""

    family: str
    orders: list[str] = Field(description="In which it was trained.")
    default_order: str
    stop: list[str] = Field(description="Pieces that end the middle.")
    file_pieces: bool = Field(description="Whether other files have pieces of their own.")


class MemoryInfo(AnswerModel):
    """Bytes that a variant takes."""

    device: str
    predicted: int
    measured: int
    kv_cache: int
    breakdown: dict[str, int]


class Model(AnswerModel):
    """One variant; what is known only while it is loaded is null until then."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="What is served: the variant, or its name where it is a folder.")
    parent: None = Field(description="Never an adapter of another model.")
    state: str
    variant: str | None = Field(description="Repository and branch; null for a folder.")
    degraded: str | None = Field(description="What was given up so that it could be loaded.")
    suspect: list[str] | None = Field(description="Why its files may have been read wrongly.")
    aliases: list[str] = Field(description="Other names that requests may send.")
    max_model_len: int | None
    context_length: int | None = Field(description="The same under another name.")
    capabilities: Capabilities | None
    chat_template: TemplateInfo | None
    chat_refusal: str | None = Field(description="Why it cannot chat, where it cannot.")
    infilling: InfillingInfo | None
    infilling_refusal: str | None = Field(description="Why it cannot infill, where it cannot.")

    type: Literal["model"] | None = Field(default=None, description=_FOR_ANTHROPIC)
    display_name: str | None = Field(default=None, description=_FOR_ANTHROPIC)
    created_at: str | None = Field(default=None, description=_FOR_ANTHROPIC)


class ModelDetails(Model):
    """One variant, with the full record of where it came from while it is loaded."""

    self_test: SelfTestReport | None = Field(default=None, description="Of its last load.")
    live_check: LiveCheckStatistics | None = Field(
        default=None, description="What goes on meanwhile."
    )
    memory: MemoryInfo | None = None
    provenance: dict[str, Any] | None = Field(default=None, description="Where it came from.")


class ModelList(AnswerModel):
    """Every variant."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool | None = Field(default=None, description=_FOR_ANTHROPIC)
    first_id: str | None = Field(default=None, description=_FOR_ANTHROPIC)
    last_id: str | None = Field(default=None, description=_FOR_ANTHROPIC)
    models: list[Any] | None = Field(
        default=None, description="With client_version in the query: empty."
    )


def describe(
    status: VariantStatus, model: ServedModel | None, *, for_anthropic: bool
) -> dict[str, Any]:
    """Return the fields of a `Model`."""
    created = status.created if model is None else model.created
    # A folder's path is nobody's business.
    variant = None if status.variant.startswith(("/", ".", "~")) else status.variant
    fields = {
        "id": status.name,
        "object": "model",
        "created": created,
        "owned_by": "tetrad",
        "root": variant or status.name,
        "parent": None,
        "state": status.state.value,
        "variant": variant,
        "degraded": status.degraded,
        "suspect": status.suspect,
        "aliases": list(status.aliases),
        **_describe_loaded(model),
    }
    if for_anthropic:
        at = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
        fields |= {"type": "model", "display_name": status.name, "created_at": at}
    return fields


def describe_details(status: VariantStatus, model: ServedModel | None) -> dict[str, Any]:
    """Return what `ModelDetails` has beside those fields; what there is none of is left out."""
    found: dict[str, Any] = {"self_test": status.self_test, "live_check": status.live_check}
    if model is not None:
        found["provenance"] = dict(model.identity.record)
        if model.memory is not None:
            found["memory"] = msgspec.to_builtins(model.memory)
    return {name: value for name, value in found.items() if value is not None}


def _describe_loaded(model: ServedModel | None) -> dict[str, Any]:
    most = None if model is None else model.engine.max_model_len
    fields: dict[str, Any] = dict.fromkeys(_WHILE_LOADED)
    fields |= {"max_model_len": most, "context_length": most}
    if model is None:
        return fields
    template, infilling = model.chat_template, model.infilling
    return fields | {
        "capabilities": Capabilities(
            completion=True,
            chat=template is not None,
            infilling=infilling is not None,
            tools=template is not None,
        ),
        "chat_template": TemplateInfo(
            name=None if template is None else template.name,
            source=None if template is None else template.origin.value,
            findings=list(model.template_findings),
        ),
        "chat_refusal": model.chat_refusal,
        "infilling": infilling and InfillingInfo.model_validate(infilling.record),
        "infilling_refusal": model.infilling_refusal,
    }


_WHILE_LOADED = (
    "capabilities",
    "chat_template",
    "chat_refusal",
    "infilling",
    "infilling_refusal",
)
