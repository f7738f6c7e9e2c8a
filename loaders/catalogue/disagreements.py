"""Finds what a model card, a branch's name, settings and files say differently of one checkpoint.

Each disagreement is a sentence for people: what either side says, nothing decided. The files are
what is loaded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.catalogue.model_card_table import ModelCardRow
    from loaders.quantization.quantization import Quantization

SIZE_TOLERANCE = 0.03  # model cards count small files too
_ROUNDING_BYTES = 5_000_000  # and print gigabytes with two places
_BRANCH = re.compile(
    r"gptq-(?P<bits>\d)bit-(?P<group>-1|\d{1,4})g(?:-actorder_(?P<order>True|False))?"
)


def disagreements_with_name(branch: str | None, quantization: Quantization | None) -> Iterator[str]:
    """Compare a branch's name, as in `gptq-4bit-32g-actorder_True`, with the settings."""
    match = _BRANCH.fullmatch(branch or "")
    if match is None or quantization is None:
        return
    base = quantization.base
    if int(match["bits"]) != base.bits:
        yield _sentence("the branch's name", f"{match['bits']} bits", quantization, f"{base.bits}")
    if int(match["group"]) != base.group_size:
        yield _sentence(
            "the branch's name", _group(int(match["group"])), quantization, _group(base.group_size)
        )
    if match["order"] and (match["order"] == "True") != quantization.desc_act:
        yield _sentence(
            "the branch's name",
            f"act order {match['order']}",
            quantization,
            f"{quantization.desc_act}",
        )


def disagreements_with_model_card(
    row: ModelCardRow, quantization: Quantization | None, damp: float | None
) -> Iterator[str]:
    """Compare a row of the model card's table with the settings."""
    if quantization is None:
        return
    base = quantization.base
    if row.bits not in (None, base.bits):
        yield _sentence("the model card", f"{row.bits} bits", quantization, f"{base.bits}")
    if row.group_size not in (None, base.group_size):
        yield _sentence(
            "the model card", _group(row.group_size or 0), quantization, _group(base.group_size)
        )
    # Tensors alone don't tell act order, so only settings can contradict.
    if not quantization.is_inferred and row.desc_act not in (
        None,
        quantization.desc_act,
    ):
        yield _sentence(
            "the model card", f"act order {row.desc_act}", quantization, f"{quantization.desc_act}"
        )
    if row.damp is not None and damp is not None and abs(row.damp - damp) > 1e-9:
        yield _sentence("the model card", f"damp {row.damp:g}", quantization, f"{damp:g}")


def disagreement_in_size(row: ModelCardRow, weight_bytes: int) -> Iterator[str]:
    """Compare the model card's size with that of the tensors."""
    if row.num_bytes and weight_bytes:
        apart = weight_bytes - row.num_bytes
        if abs(apart) > SIZE_TOLERANCE * row.num_bytes + _ROUNDING_BYTES:
            yield (
                f"the model card says {row.num_bytes / 1e9:.2f} GB, the files hold"
                f" {weight_bytes / 1e9:.2f} GB of tensors ({apart / row.num_bytes:+.0%})"
            )


def disagreements_in_gguf_type(
    row: ModelCardRow | None, in_name: str | None, in_header: str | None
) -> Iterator[str]:
    """Compare what the model card, a GGUF file's name and its header call its types."""
    if in_name and in_header and in_name != in_header:
        yield f"the file's name says {in_name}, its header says {in_header}"
    found = in_header or in_name
    if row is not None and row.quant_method and found and row.quant_method.upper() != found:
        yield f"the model card says {row.quant_method}, the file is {found}"


def _sentence(who: str, says: str, quantization: Quantization, found: str) -> str:
    # Where settings lie, what was found are the tensors.
    what_is_so = "the tensors say" if quantization.remarks else f"{quantization.source} says"
    return f"{who} says {says}, {what_is_so} {found}"


def _group(size: int) -> str:
    return "no groups" if size == -1 else f"group {size}"
