"""Chat templates of model families, and the rules by which a variant gets one.

For checkpoints whose tokenizer has no template of its own (older quantised repositories, mostly),
and as what the templates of others are compared with.
The texts are ours, written to the formats that the families were trained on. The rules look at
names, at the tokenizer's pieces, and at the model card last, which may show an instruction block
for a base model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.text.errors import BaseModelError, ChatNotSupportedError
from service.text.facts import plain_name

if TYPE_CHECKING:
    from service.text.facts import VariantFacts


@dataclass(frozen=True, slots=True)
class TemplateFamily:
    """A way of writing dialogues."""

    name: str
    template: str  # Jinja; sees messages, bos_token, eos_token, add_generation_prompt
    # Written by the template and parsed as single ids; without them the text would mean nothing.
    needed_pieces: frozenset[str] = frozenset()
    # Whether every right template of the family writes a dialogue in the same way. Others differ
    # between versions, or in default texts and white space.
    has_one_form: bool = False


# Sets `system` (stripped, or none) and `turns`, which must alternate, and end with the user's where
# the assistant shall speak next. An answer that comes last is one to be continued.
_ALTERNATING_TURNS = r"""
{%- set system = none -%}
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content | trim -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn.role != ('user' if loop.index0 is even else 'assistant') -%}
        {{- raise_exception('user and assistant must take turns, the user first') -}}
    {%- endif -%}
{%- endfor -%}
{%- if not turns or (turns | length is even and add_generation_prompt) -%}
    {{- raise_exception('the last message must be the user\'s') -}}
{%- endif -%}
"""

LLAMA_2 = TemplateFamily(
    "Llama 2",
    _ALTERNATING_TURNS
    + r"""
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- ' ' + turn.content | trim + ' ' + eos_token -}}
    {%- else -%}
        {{- bos_token + '[INST] ' -}}
        {%- if loop.first and system is not none -%}
            {{- '<<SYS>>\n' + system + '\n<</SYS>>\n\n' -}}
        {%- endif -%}
        {{- turn.content | trim + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
""",
    has_one_form=True,
)

# A dialogue without a system turn gets one with no content: the model has seen no other beginning.
# An answer that comes last has the opening that the model itself continues.
CODELLAMA_70B = TemplateFamily(
    "CodeLlama 70B Instruct",
    _ALTERNATING_TURNS
    + r"""
{{- bos_token + 'Source: system\n\n ' + (system or '') + ' <step> ' -}}
{%- for turn in turns -%}
    {{- 'Source: ' + turn.role -}}
    {%- if loop.last and turn.role == 'assistant' -%}
        {{- '\nDestination: user' -}}
    {%- endif -%}
    {{- '\n\n ' + turn.content | trim + ' <step> ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Source: assistant\nDestination: user\n\n ' -}}
{%- endif -%}
""",
    frozenset({"<step>"}),
    has_one_form=True,
)

CHATML = TemplateFamily(
    "ChatML",
    r"""
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""",
    frozenset({"<|im_start|>", "<|im_end|>"}),
    has_one_form=True,
)

# The family has no system turn; a system text stands before the first user's.
MISTRAL = TemplateFamily(
    "Mistral",
    _ALTERNATING_TURNS
    + r"""
{{- bos_token -}}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- ' ' + turn.content | trim + eos_token -}}
    {%- else -%}
        {{- '[INST] ' -}}
        {%- if loop.first and system -%}
            {{- system + '\n\n' -}}
        {%- endif -%}
        {{- turn.content | trim + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
""",
)

# The publisher's default system text, which has the model refuse whatever isn't computer science,
# is left out: who wants it sends it.
DEEPSEEK_CODER = TemplateFamily(
    "DeepSeek-Coder",
    r"""
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- message.content + '\n' -}}
    {%- elif message.role == 'user' -%}
        {{- '### Instruction:\n' + message.content + '\n' -}}
    {%- else -%}
        {{- '### Response:\n' + message.content + '\n<|EOT|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\n' -}}
{%- endif -%}
""",
    frozenset({"<|EOT|>"}),
)

ALPACA = TemplateFamily(
    "Alpaca",
    r"""
{%- if messages[0].role != 'system' -%}
    {{- 'Below is an instruction that describes a task. '
        'Write a response that appropriately completes the request.\n\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- message.content | trim + '\n\n' -}}
    {%- elif message.role == 'user' -%}
        {{- '### Instruction:\n' + message.content | trim + '\n\n' -}}
    {%- else -%}
        {{- '### Response:\n' + message.content | trim + eos_token + '\n\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\n' -}}
{%- endif -%}
""",
)

# By the names that operators write.
FAMILIES = {
    "llama-2": LLAMA_2,
    "codellama-70b": CODELLAMA_70B,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "deepseek-coder": DEEPSEEK_CODER,
    "alpaca": ALPACA,
}

# Words of a name that tell of storage, size or version, not of what the model was trained for.
_NEUTRAL_WORD = re.compile(
    r"v?\d+|\d+[bgkm]|\d+x\d+b|\d*bit|hf|gptq|awq|gguf|ggml|fp16|bf16|fp32|int[48]"
    r"|w\d+a\d+|actorder|true|false|main"
)
_CHAT_WORDS = {"assistant", "chat", "it", "instruct"}
_CARD_NAMES = {"alpaca": ALPACA, "chatml": CHATML, "llama-2-chat": LLAMA_2, "mistral": MISTRAL}


@dataclass(frozen=True, slots=True)
class _NameRule:
    """What the publisher's own names of one family mean; derived models follow other rules."""

    label: str
    start: str  # regular expression for the beginning of the name
    chat_word: str  # the one further word in the name of the model that chats
    family: TemplateFamily
    large_family: TemplateFamily | None = None  # of its 70B model, where that is another
    base_words: tuple[str, ...] = ("base",)


_NAME_RULES = (
    _NameRule("CodeLlama", "code-?llama", "instruct", LLAMA_2, CODELLAMA_70B, ("base", "python")),
    _NameRule("Llama 2", "(meta-)?llama-?2", "chat", LLAMA_2),
    _NameRule("Mistral", "mistral|mixtral", "instruct", MISTRAL),
    # Version 2 writes dialogues in another way.
    _NameRule("DeepSeek-Coder", "deepseek-coder(?!-v2)", "instruct", DEEPSEEK_CODER),
)


def decide_family(facts: VariantFacts) -> TemplateFamily:
    """Choose the family whose template the variant was trained on.

    The first rule that applies decides:
    1. A name in its publisher's own form (the repository's, else the model card's two).
    2. The shape of CodeLlama 70B Instruct: a `<step>` piece on 80 Llama layers.
    3. ChatML's pieces, if a name or the model card says that it chats: base models have them too.
    4. The model card's name for its template, or an Alpaca block in it.

    Raises BaseModelError, and ChatNotSupportedError where nothing is known.
    """
    family = (
        _family_by_name(facts)
        or _family_by_shape(facts)
        or _family_by_pieces(facts)
        or _family_by_model_card(facts)
    )
    if family is None:
        raise ChatNotSupportedError(
            f"{facts.repo} has no chat template, and neither its name, its special pieces nor its "
            "model card tell of a known one. Use /v1/completions, or choose one by the setting "
            "chat_template: a family's name or a Jinja file."
        )
    missing = family.needed_pieces - facts.pieces
    if missing:
        raise ChatNotSupportedError(
            f"{facts.repo} has no chat template; {family.name}'s would fit, but the tokenizer "
            f"lacks {', '.join(sorted(missing))}. Use /v1/completions, or mend the tokenizer."
        )
    return family


def _family_by_name(facts: VariantFacts) -> TemplateFamily | None:
    for name in facts.names:
        for rule in _NAME_RULES:
            start = re.match(f"(?:{rule.start})(?:-|$)", name)
            if start:
                return _apply(rule, name[start.end() :].split("-"), facts)
    return None


def _apply(rule: _NameRule, words: list[str], facts: VariantFacts) -> TemplateFamily | None:
    """Judge by the words after the family's; None for a derived model, which may be anything."""
    telling = [word for word in words if word and not _NEUTRAL_WORD.fullmatch(word)]
    if telling == [rule.chat_word]:
        return rule.large_family if rule.large_family and "70b" in words else rule.family
    if not telling or telling in [[word] for word in rule.base_words]:
        raise BaseModelError(
            _base_model_message(" ".join([rule.label, *map(str.capitalize, telling)]), facts)
        )
    return None


def _base_model_message(label: str, facts: VariantFacts) -> str:
    shown = facts.model_card is not None and facts.model_card.template_text is not None
    warning = (
        " Its model card shows an instruction block, but this model was not trained on one." * shown
    )
    return (
        f"{facts.repo} is a base model ({label}) without a chat template: it continues text and "
        f"was not trained to answer messages.{warning} Use /v1/completions, or serve a variant "
        "made for chat."
    )


def _family_by_shape(facts: VariantFacts) -> TemplateFamily | None:
    is_70b = facts.model_type == "llama" and facts.num_hidden_layers == 80
    return CODELLAMA_70B if is_70b and "<step>" in facts.pieces else None


def _family_by_pieces(facts: VariantFacts) -> TemplateFamily | None:
    words = {word for name in facts.names for word in name.split("-")}
    chats = bool(words & _CHAT_WORDS) or _card_template_name(facts) == "chatml"
    return CHATML if chats and facts.pieces >= CHATML.needed_pieces else None


def _family_by_model_card(facts: VariantFacts) -> TemplateFamily | None:
    text = (facts.model_card and facts.model_card.template_text) or ""
    if "### Instruction:" in text and "### Response:" in text:
        return ALPACA
    return _CARD_NAMES.get(_card_template_name(facts))


def _card_template_name(facts: VariantFacts) -> str:
    return plain_name((facts.model_card and facts.model_card.template_name) or "")
