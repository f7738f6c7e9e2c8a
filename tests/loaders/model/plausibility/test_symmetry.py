"""Whether a checkpoint says that it is symmetric."""

from __future__ import annotations

import json

import pytest

from loaders.model.plausibility.symmetry import claims_symmetry


@pytest.mark.parametrize(
    ("settings", "claims"), [({"sym": True}, True), ({"sym": False}, False), ({}, False)]
)
def test_only_settings_that_say_so_claim_symmetry(settings, claims, tmp_path):
    assert not claims_symmetry(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not claims_symmetry(tmp_path)
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert claims_symmetry(tmp_path) is claims
    (tmp_path / "quantize_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert claims_symmetry(tmp_path) is claims
