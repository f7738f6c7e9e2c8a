"""What is compiled without a GPU is what a launch on one would be."""

from __future__ import annotations

from loaders.model.kernels.triton.compile_cases import compile_cases


def test_every_argument_of_every_case_has_a_type_or_a_value():
    cases = compile_cases()
    for case in cases:
        assert set(case.signature) == set(case.kernel.arg_names), case.name
        constants = {name for name, kind in case.signature.items() if kind == "constexpr"}
        assert constants == set(case.constants), case.name
    assert len({case.name for case in cases}) == len(cases)


def test_common_layers_of_both_types_of_activations_are_there():
    names = " / ".join(case.name for case in compile_cases())
    for wanted in ("w2", "w3", "w4", "w8", "float16", "bfloat16", "16 rows", "32 rows", "group -1"):
        assert wanted in names
    for zeros in ("common", "whole", "float"):
        assert f"{zeros} zeros" in names
    assert "linear_dequantize w4" in names
