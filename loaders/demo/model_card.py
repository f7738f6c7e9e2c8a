"""Writes the model card of a demo repository, in the form of those of published GPTQ ones.

What it says of the weights is what was done to them: rounded by search, not calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.demo.branches import (
    DEMO_AWQ_REPO,
    DEMO_REPO,
    RECOMMENDED_TEMPERATURE,
    RECOMMENDED_TOP_P,
    DemoBranch,
)
from loaders.demo.wheel import FILE, PACKAGE, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_ORIGINAL = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class MeasuredBranch:
    """A branch and what was found out about its files."""

    branch: DemoBranch
    num_bytes: int  # of the weights file
    perplexity: float


def model_card(
    measured: Sequence[MeasuredBranch], *, source_perplexity: float, num_tokens: int
) -> str:
    """Return the model card of the repository that all these branches belong to."""
    method = measured[0].branch.quant_method
    parts = (
        _FRONT_MATTER.format(method=method),
        _description(method.upper()),
        _PROMPT_TEMPLATE,
        f"## Provided files, and {method.upper()} parameters\n",
        _gptq_table(measured) if method == "gptq" else _awq_table(measured),
        _perplexities(measured, source_perplexity, num_tokens),
        _LICENCE,
    )
    return "\n".join(parts)


_FRONT_MATTER = """\
---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
inference: false
language:
- en
license: apache-2.0
model_creator: HuggingFaceTB
model_name: SmolLM2 135M Instruct
model_type: llama
pipeline_tag: text-generation
prompt_template: "<|im_start|>system\\n{{system_message}}<|im_end|>\\n\\
  <|im_start|>user\\n{{prompt}}<|im_end|>\\n<|im_start|>assistant\\n"
quantized_by: Tetrad
tags:
- {method}
---
"""

_PROMPT_TEMPLATE = f"""\
## Prompt template: ChatML

```
<|im_start|>system
{{system_message}}<|im_end|>
<|im_start|>user
{{prompt}}<|im_end|>
<|im_start|>assistant
```

The model's makers recommend to sample with
temperature {RECOMMENDED_TEMPERATURE} and top_p {RECOMMENDED_TOP_P}.
"""

_LICENCE = """\
## Licence

The original model is by HuggingFaceTB, under the Apache License 2.0. So are these files.
"""


def _description(method: str) -> str:
    return f"""\
# SmolLM2 135M Instruct - {method}

- Model creator: HuggingFaceTB
- Original model: [SmolLM2 135M Instruct]({_ORIGINAL})

## Description

This repository contains {method} model files for [SmolLM2 135M Instruct]({_ORIGINAL}).

They were built on this machine by `tetrad demo` from `{FILE}`,
the 4-bit GGUF file in the Python package `{PACKAGE}` {VERSION}.

The weights are **rounded, not calibrated**: the scale and zero point of each group were searched
for the least squared error of the weights, and no data was run through the model. Where a branch
has act order, its inputs are sorted by the norm of their weight columns, not by activations. The
zero points are asymmetric. The damping, dataset and sequence length of a calibration do not apply.

## Repositories available

* `{DEMO_REPO}`: GPTQ models, with multiple quantisation parameter options
* `{DEMO_AWQ_REPO}`: AWQ model
"""


def _perplexities(
    measured: Sequence[MeasuredBranch], source_perplexity: float, num_tokens: int
) -> str:
    rows = "".join(f"| {one.branch.name} | {one.perplexity:.2f} |\n" for one in measured)
    return f"""\
## Perplexity

Lower is better. Measured on a text of {num_tokens} tokens in English and Python that comes with
Tetrad, read in one piece, with fp32 arithmetic on the dequantised weights. The 4-bit GGUF file that
everything here was rounded from has {source_perplexity:.2f}.

| Branch | Perplexity |
| ------ | ---------- |
{rows}"""


def _gptq_table(measured: Sequence[MeasuredBranch]) -> str:
    rows = "".join(
        f"| {one.branch.name} | {one.branch.bits} | {_group(one.branch)} |"
        f" {'Yes' if one.branch.act_order else 'No'} | n/a | none | n/a | {_size(one)} |"
        f" Not tested | {one.branch.description} Perplexity {one.perplexity:.2f}. |\n"
        for one in measured
    )
    return f"""\
Multiple quantisation parameters are provided, each in a branch of its own.

- Bits: the bit size of the quantised weights.
- GS: how many inputs share a scale. "None" is all of them.
- Act Order: whether inputs were sorted before they were dealt out to groups; also `desc_act`.
- Damp %, GPTQ Dataset, Seq Len: parameters of a calibration, of which there was none.
- ExLlama: whether the file loads with ExLlama.

| Branch | Bits | GS | Act Order | Damp % | GPTQ Dataset | Seq Len | Size | ExLlama | Desc |
| ------ | ---- | -- | --------- | ------ | ------------ | ------- | ---- | ------- | ---- |
{rows}"""


def _awq_table(measured: Sequence[MeasuredBranch]) -> str:
    rows = "".join(
        f"| {one.branch.name} | {one.branch.bits} | {_group(one.branch)} | none | n/a |"
        f" {_size(one)} |\n"
        for one in measured
    )
    return f"""\
The files have AWQ's form (GEMM version, with zero points); no activations were looked at.

| Branch | Bits | GS | AWQ Dataset | Seq Len | Size |
| ------ | ---- | -- | ----------- | ------- | ---- |
{rows}"""


def _group(branch: DemoBranch) -> str:
    return "None" if branch.group_size == -1 else str(branch.group_size)


def _size(one: MeasuredBranch) -> str:
    return f"{one.num_bytes / 1e9:.2f} GB"
