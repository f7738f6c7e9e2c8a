"""The text side of a variant, read in the API's process: tokenizer, chat template, identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from loaders.checkpoint.tokenizer import load_tokenizer
from service.serving.served_model import Identity
from service.text.errors import ChatNotSupportedError, InfillingNotSupportedError
from service.text.facts import VariantFacts, read_facts
from service.text.infilling.infilling import Infilling, resolve_infilling
from service.text.template_check import TemplateFinding, check_refusal, check_template
from service.text.templates import ChatTemplate, resolve_chat_template
from service.text.text_bound import TextBound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from service.text.facts import VariantFacts
    from service.worker_protocol.model_description import ModelDescription

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelText:
    """What turns a variant's texts into token ids and back, and its name into words."""

    tokenizer: PreTrainedTokenizerFast
    chat_template: ChatTemplate | None  # None where the variant cannot chat
    chat_refusal: str | None  # why it cannot, for people
    identity: Identity
    infilling: Infilling | None = None  # None where the variant cannot infill
    infilling_refusal: str | None = None  # why it cannot, for people
    template_findings: tuple[TemplateFinding, ...] = ()  # reasons to doubt the template

    def close(self) -> None:
        """End what runs for it."""
        if self.chat_template is not None:
            self.chat_template.close()


def read_model_text(
    description: ModelDescription,
    chat_template: str | None = None,
    infill_order: str | None = None,
) -> ModelText:
    """Read the small files of a model that an engine has loaded; takes a moment.

    chat_template, infill_order: the operator's choice. Raises LoadError, and TextError where one
    names what the variant has not.
    """
    folder = Path(description.folder)
    tokenizer = load_tokenizer(folder, is_tried=True)  # the engine's process did
    TextBound.of(tokenizer)  # takes a moment, which no request should
    facts = read_facts(folder, description.repo, description, tokenizer)
    # First, as nothing runs yet that would have to be ended if it fails.
    infilling, infilling_refusal = _read_infilling(tokenizer, facts, infill_order)
    checked = check_chat(tokenizer, facts, chat_template)
    template = checked.template
    if template is not None:
        log.info("chat_template", name=template.name, origin=template.origin.value)
    else:
        log.info("chat_unavailable", reason=checked.refusal)
    for finding in checked.findings:
        log.warning(
            "chat_template_doubtful",
            repo=description.repo,
            code=finding.code,
            reason=finding.sentence,
        )
    return ModelText(
        tokenizer=tokenizer,
        chat_template=template,
        chat_refusal=checked.refusal,
        identity=identity_of(description, template, infilling),
        infilling=infilling,
        infilling_refusal=infilling_refusal,
        template_findings=checked.findings,
    )


@dataclass(frozen=True, slots=True)
class CheckedChat:
    """A variant's chat template, or why it has none, and the reasons to doubt it."""

    template: ChatTemplate | None
    refusal: str | None
    findings: tuple[TemplateFinding, ...]


def check_chat(
    tokenizer: PreTrainedTokenizerFast, facts: VariantFacts, asked: str | None
) -> CheckedChat:
    """Choose a variant's template, start and check it; asked: the operator's choice.

    Raises TemplateSettingError.
    """
    try:
        template = resolve_chat_template(tokenizer, facts, asked)
    except ChatNotSupportedError as error:
        return CheckedChat(None, str(error), check_refusal(facts))
    return CheckedChat(template, None, check_template(template, tokenizer, facts))


def _read_infilling(
    tokenizer: PreTrainedTokenizerFast, facts: VariantFacts, order: str | None
) -> tuple[Infilling | None, str | None]:
    """Return how the variant infills, or why it can't. Raises InfillSettingError."""
    try:
        infilling = resolve_infilling(tokenizer, facts, order)
    except InfillingNotSupportedError as error:
        log.info("infilling_unavailable", reason=str(error))
        return None, str(error)
    log.info("infilling", family=infilling.family, order=infilling.order.value)
    return infilling, None


def identity_of(
    description: ModelDescription,
    template: ChatTemplate | None,
    infilling: Infilling | None = None,
) -> Identity:
    """Return where answers come from; the fingerprint covers all of it but where it lies."""
    packages = ("tetrad", "torch", "transformers", "tokenizers")
    record: dict[str, object] = {
        "repo": description.repo,
        "revision": description.revision,
        "file": description.file,
        "commit": description.commit,
        "quantization": description.quantization,
        "kernel": description.backend,
        "dtype": description.dtype,
        "device": description.device,
        "arithmetic": description.arithmetic,
        "batch_invariant": description.is_batch_invariant,
        "chat_template": None if template is None else template.name,
        "infilling": None if infilling is None else infilling.family,
        "infill_order": None if infilling is None else infilling.order.value,
        "chat_template_sha256": None if template is None else template.source_sha256,
        "versions": {package: version(package) for package in packages},
    }
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return Identity(
        revision=description.commit or description.revision or "local folder",
        quantization=description.quantization,
        kernel=description.backend,
        fingerprint=f"fp_{digest[:12]}",
        record=record,
    )
