"""Transformers' own way with a quantised checkpoint, where it is asked for.

For what is not read here. It needs packages that this environment cannot hold (optimum, GPTQModel,
compressed-tensors; the second wants a newer PyTorch, and compiles its kernels when they are first
used: 219 s on two cores, 2026-11), so it has an environment of its own: `stock` in pyproject.toml,
`constraints-stock.txt`. It is never chosen by itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from loaders.errors import BackendError
from loaders.quantization.embedded import embedded_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

STOCK = "stock"
_COMMAND = (
    "make an environment of its own with pip install -c constraints-stock.txt '.[stock]', and add"
    " what that lacks"
)
# What Transformers' loading of a method imports.
_PACKAGES = {
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "auto-round": ("auto_round",),
}


class StockLinear(nn.Module):
    """A layer of another library's, with the names by which the engine asks a weight."""

    input_permutation: Tensor | None = None
    output_permutation: Tensor | None = None
    num_invariant_rows = 1  # nothing is known of its kernels

    def __init__(self, linear: nn.Module, in_features: int, out_features: int) -> None:
        super().__init__()
        # In a tuple, no submodule: its tensors are its library's business, dtypes included.
        self._held = (linear,)
        self.in_features = in_features
        self.out_features = out_features

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] and add the bias: [rows, out] in x's dtype."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in]: [..., out] in x's dtype."""
        out: Tensor = self._held[0](x)
        return out.to(x.dtype)

    def fuse_with(self, others: Sequence[object]) -> StockLinear | None:  # noqa: ARG002
        """Never."""
        return None


def hand_to_transformers(config: PreTrainedConfig, raw_config: Mapping[str, Any]) -> None:
    """Give the model's config its quantisation back, so that Transformers' quantizer takes it.

    raw_config: config.json without what could run code. Raises BackendError, with the command,
    where the packages are missing.
    """
    settings = embedded_settings(raw_config)
    if settings is None:
        raise BackendError(
            "backend stock takes what config.json's quantization_config describes, and this one"
            " describes nothing; use --backend auto"
        )
    method = str(settings.get("quant_method"))
    if missing := absent_packages(method):
        raise missing_packages(method, missing)
    # Packed as they are, compressed-tensors' layers compute only inside Transformers' own forward.
    extra = {"dequantize": True} if method == "compressed-tensors" else {}
    config.quantization_config = {**settings, **extra}


def absent_packages(method: str) -> list[str]:
    """Name the packages that a method of quantisation needs and that are not installed."""
    return [name for name in _PACKAGES.get(method, ()) if find_spec(name) is None]


def missing_packages(method: str, names: Sequence[str]) -> BackendError:
    """Say which packages a method needs, and how they are installed."""
    return BackendError(
        f"backend stock needs {' and '.join(names)} for {method}, which this environment lacks;"
        f" {_COMMAND}"
    )


def wrap_stock_linears(model: PreTrainedModel) -> None:
    """Put a StockLinear around every linear layer that another library holds packed."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and hasattr(module, "weight"):
            continue
        in_features, out_features = (
            getattr(module, key, None) for key in ("in_features", "out_features")
        )
        if isinstance(in_features, int) and isinstance(out_features, int):
            parent, _, child = name.rpartition(".")
            wrapped = StockLinear(module, in_features, out_features)
            setattr(model.get_submodule(parent), child, wrapped)
