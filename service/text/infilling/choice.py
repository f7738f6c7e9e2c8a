"""Chooses the family by which a variant infills, or says why it can't.

The pieces alone tell little: CodeLlama's 34B model, every Qwen2.5 and most of Mistral's tokenizers
carry pieces that their models were never trained on. So names and the number of layers count too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from service.text.errors import InfillingNotSupportedError
from service.text.infilling.families import (
    CODEGEMMA,
    CODELLAMA,
    CODESTRAL,
    DEEPSEEK,
    FAMILIES,
    QWEN_CODER,
    InfillFamily,
    families_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.text.facts import VariantFacts

    Rule: TypeAlias = Callable[[VariantFacts], str | None]

_INSTEAD = (
    "Use /v1/completions without a suffix, or serve a variant that infills: CodeLlama 7B or 13B (or"
    " their Instruct), DeepSeek-Coder, StarCoder, Qwen-Coder, Codestral or CodeGemma."
)
_RENAME = (
    "If it was trained to, let its folder or its model card's base_model name the model that it is"
    " made of."
)
_CODELLAMA_LAYERS = {48: "34B", 80: "70B"}
_CHAT_WORDS = {"chat", "instruct", "it"}


def choose_family(facts: VariantFacts, ids: Mapping[str, int]) -> InfillFamily:
    """Choose the variant's family; the first rule that applies decides.

    ids: of every family's pieces that the tokenizer has.
    1. CodeLlama by name: its Python models and those above 13B can't, whatever their tokenizers.
    2. The tokenizer has a family's pieces, and the model has rows for them.
    3. The family's own rule, by names and layers, speaks not against it.

    Raises InfillingNotSupportedError, whose message says why, and what works.
    """
    if any(re.search("code-?llama", name) for name in facts.names):
        _refuse_if(_against_codellama(facts), facts)
    families = families_with(frozenset(ids))
    if not families:
        _refuse_if(
            "its tokenizer has no pieces that mark a gap, as models trained to infill have", facts
        )
    reasons = [_against(family, facts, ids) for family in families]
    for family, reason in zip(families, reasons, strict=True):
        if reason is None:
            return family
    raise _refusal(next(reason for reason in reasons if reason), facts)


def every_piece() -> frozenset[str]:
    """Name the pieces of all families."""
    return frozenset(piece for family in FAMILIES for piece in family.pieces)


def _refuse_if(reason: str | None, facts: VariantFacts) -> None:
    if reason is not None:
        raise _refusal(reason, facts)


def _refusal(reason: str, facts: VariantFacts) -> InfillingNotSupportedError:
    return InfillingNotSupportedError(f"{facts.repo} cannot infill: {reason}. {_INSTEAD}")


def _against(family: InfillFamily, facts: VariantFacts, ids: Mapping[str, int]) -> str | None:
    highest = max(ids[piece] for piece in family.needed_pieces)
    if facts.vocab_size is not None and highest >= facts.vocab_size:
        return (
            f"its tokenizer has {family.name}'s pieces up to id {highest}, but the model has only"
            f" {facts.vocab_size} rows, so it was not trained on them"
        )
    rule = _RULES.get(family.name)
    return None if rule is None else rule(facts)


def _against_codellama(facts: VariantFacts) -> str | None:
    words = {word for name in facts.names for word in name.split("-")}
    if "python" in words:
        return "CodeLlama's Python models were not trained to, in any size"
    size = _CODELLAMA_LAYERS.get(facts.num_hidden_layers or 0)
    named = words & {"34b", "70b"} if size is None else {size}
    if named:
        return f"of CodeLlama only 7B and 13B were trained to, and this is {min(named).upper()}"
    return None


def _against_deepseek(facts: VariantFacts) -> str | None:
    return _unless_named("coder|deepseek-v(2-5|3)", "DeepSeek's", facts)


def _against_qwen(facts: VariantFacts) -> str | None:
    return _unless_named("coder", "Qwen-Coder's", facts)


def _against_codestral(facts: VariantFacts) -> str | None:
    return _unless_named("codestral", "Codestral's", facts)


def _unless_named(pattern: str, whose: str, facts: VariantFacts) -> str | None:
    if any(re.search(pattern, name) for name in facts.names):
        return None
    return (
        f"its tokenizer has {whose} pieces, but models that were not trained on them have them too,"
        f" and none of its names ({', '.join(facts.names)}) is of one that was. {_RENAME}"
    ).removesuffix(".")


def _against_codegemma(facts: VariantFacts) -> str | None:
    words = {word for name in facts.names for word in name.split("-")}
    if words & _CHAT_WORDS:
        return "CodeGemma's instruction model is published for chat alone, its 2B and 7B for code"
    return None


_RULES: dict[str, Rule] = {
    CODELLAMA.name: _against_codellama,
    DEEPSEEK.name: _against_deepseek,
    QWEN_CODER.name: _against_qwen,
    CODEGEMMA.name: _against_codegemma,
    CODESTRAL.name: _against_codestral,
}
