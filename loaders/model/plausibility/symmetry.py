"""Whether a checkpoint's settings say that its zero points are the middle of the codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.checkpoint.files import read_json
from loaders.quantization.settings import OWN_FILES

if TYPE_CHECKING:
    from pathlib import Path


def claims_symmetry(folder: Path) -> bool:
    """Whether any settings file says `sym`; one that is silent leaves it to the zero points."""
    own = [read_json(folder / name) for name in OWN_FILES if (folder / name).is_file()]
    config = folder / "config.json"
    common = read_json(config).get("quantization_config") if config.is_file() else None
    settings = [*own, common]
    return any(isinstance(one, dict) and one.get("sym") is True for one in settings)
