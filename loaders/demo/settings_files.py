"""The files of a branch that say what it is: its config, and its quantizer's settings.

Without tensors, so that a branch can be described before it is built.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.demo.branches import DemoBranch


def settings_files(model_config: Mapping[str, Any], branch: DemoBranch) -> dict[str, str]:
    """Return the text of each file by its name; model_config: of the model before it is packed."""
    settings = _settings(branch)
    files = {
        "config.json": dict(model_config)
        | {"torch_dtype": "float16", "quantization_config": settings}
    }
    if branch.quant_method == "gptq":
        files["quantize_config.json"] = {
            key: value for key, value in settings.items() if key != "quant_method"
        }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def _settings(branch: DemoBranch) -> dict[str, Any]:
    if branch.quant_method == "awq":
        return {
            "bits": branch.bits,
            "group_size": branch.group_size,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }
    return {
        "bits": branch.bits,
        "group_size": branch.group_size,
        "damp_percent": None,  # nothing was calibrated
        "desc_act": branch.act_order,
        "static_groups": False,
        "sym": branch.symmetric,
        "true_sequential": False,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    }
