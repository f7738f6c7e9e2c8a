"""Variants in the shape of the published repositories, for plans: headers only, no files."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.catalogue.variants import Variant, VariantKind
from loaders.checkpoint.files import TensorInfo
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.quantization import Quantization
from tests import published
from tests.published import CODELLAMA_7B, CODELLAMA_13B, CODELLAMA_34B, CODELLAMA_70B

if TYPE_CHECKING:
    from collections.abc import Iterable


def gptq_7b() -> list[Variant]:
    """The six branches of the 7B card."""
    return [gptq_branch(branch) for branch in published.GPTQ_BRANCHES]


def gptq_branch(branch: published.GptqBranch) -> Variant:
    """One branch of the 7B card."""
    packed = PackedFormat("gptq", "gptq", branch.bits, branch.group_size)
    tensors = published.gptq_tensors(CODELLAMA_7B, bits=branch.bits, group_size=branch.group_size)
    return _variant(
        published.GPTQ_7B,
        branch.name,
        VariantKind.GPTQ,
        tensors,
        CODELLAMA_7B.config(),
        quantization=Quantization(packed, branch.desc_act, sym=True, source="quantize_config.json"),
    )


def awq_70b() -> list[Variant]:
    """The one branch of the 70B card."""
    return [
        _variant(
            published.AWQ_70B,
            "main",
            VariantKind.AWQ,
            published.awq_tensors(CODELLAMA_70B, group_size=128),
            CODELLAMA_70B.config(),
            quantization=Quantization(
                PackedFormat("awq", "gemm", 4, 128), desc_act=False, sym=False, source="config.json"
            ),
        )
    ]


def fp16_34b() -> list[Variant]:
    """The one branch of the 34B card."""
    tensors = published.dense_tensors(CODELLAMA_34B)
    config = CODELLAMA_34B.config()
    return [_variant(published.FP16_34B, "main", VariantKind.DENSE, tensors, config)]


def gguf_13b() -> list[Variant]:
    """The files of the 13B card."""
    return [
        _variant(
            published.GGUF_13B,
            "main",
            VariantKind.GGUF,
            published.gguf_tensors(CODELLAMA_13B, kind),
            CODELLAMA_13B.config(),
            gguf_type=kind,
            file=f"codellama-13b-python.{kind}.gguf",
        )
        for kind in published.GGUF_FILES
    ]


def _variant(
    repo: str,
    revision: str,
    kind: VariantKind,
    tensors: Iterable[published.Tensor],
    config: dict[str, Any],
    **more: Any,
) -> Variant:
    infos = {name: TensorInfo(name, dtype, dims, Path("x")) for name, dtype, dims in tensors}
    return Variant(
        repo=repo,
        revision=revision,
        commit=sha1(f"{repo}{revision}{more.get('file')}".encode()).hexdigest(),
        kind=kind,
        tensors=infos,
        config=config,
        weight_bytes=sum(info.num_bytes for info in infos.values()),
        **more,
    )
