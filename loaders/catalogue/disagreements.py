"""Finds what a card, a branch's name, settings and files say differently of one checkpoint.

Each disagreement is a sentence for people: what either side says, nothing decided. The files are
what is loaded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.catalogue.model_card_table import CardRow
    from loaders.quantization.settings import Quantization

SIZE_TOLERANCE = 0.03  # cards count small files too
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


def disagreements_with_card(
    model_card: CardRow, quantization: Quantization | None, damp: float | None
) -> Iterator[str]:
    """Compare a row of the card's table with the settings."""
    if quantization is None:
        return
    base = quantization.base
    if model_card.bits not in (None, base.bits):
        yield _sentence("the card", f"{model_card.bits} bits", quantization, f"{base.bits}")
    if model_card.group_size not in (None, base.group_size):
        yield _sentence(
            "the card", _group(model_card.group_size or 0), quantization, _group(base.group_size)
        )
    # Tensors alone don't tell act order, so only settings can contradict.
    if not quantization.is_inferred and model_card.desc_act not in (
        None,
        quantization.desc_act,
    ):
        yield _sentence(
            "the card", f"act order {model_card.desc_act}", quantization, f"{quantization.desc_act}"
        )
    if model_card.damp is not None and damp is not None and abs(model_card.damp - damp) > 1e-9:
        yield _sentence("the card", f"damp {model_card.damp:g}", quantization, f"{damp:g}")


def disagreement_in_size(model_card: CardRow, weight_bytes: int) -> Iterator[str]:
    """Compare the card's size with that of the tensors."""
    if model_card.num_bytes and weight_bytes:
        apart = weight_bytes - model_card.num_bytes
        if abs(apart) > SIZE_TOLERANCE * model_card.num_bytes + _ROUNDING_BYTES:
            yield (
                f"the card says {model_card.num_bytes / 1e9:.2f} GB, the files hold"
                f" {weight_bytes / 1e9:.2f} GB of tensors ({apart / model_card.num_bytes:+.0%})"
            )


def disagreements_in_gguf_type(
    model_card: CardRow | None, in_name: str | None, in_header: str | None
) -> Iterator[str]:
    """Compare what the card, a GGUF file's name and its header call its types."""
    if in_name and in_header and in_name != in_header:
        yield f"the file's name says {in_name}, its header says {in_header}"
    found = in_header or in_name
    if (
        model_card is not None
        and model_card.quant_method
        and found
        and model_card.quant_method.upper() != found
    ):
        yield f"the card says {model_card.quant_method}, the file is {found}"


def _sentence(who: str, says: str, quantization: Quantization, found: str) -> str:
    return f"{who} says {says}, {quantization.source} says {found}"


def _group(size: int) -> str:
    return "no groups" if size == -1 else f"group {size}"
