"""What oneDNN's settings leave out, as it reads them itself."""

from __future__ import annotations

import pytest

from native.masks import mask_of_bfloat16, mask_of_tiles

NEW, OLD = "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"


@pytest.mark.parametrize("name", [NEW, OLD])
@pytest.mark.parametrize(
    ("limit", "leaves_bfloat16_out", "leaves_tiles_out"),
    [
        ("AVX2", True, True),
        ("avx512_core_vnni", True, True),
        ("AVX512_CORE_BF16", False, True),
        ("AVX10_1_512", False, True),
        ("avx10_2", False, True),
        ("AVX10_2_512", False, True),
        ("AVX512_CORE_AMX", False, False),
        ("ALL", False, False),
        ("", False, False),
    ],
)
def test_a_limit_leaves_out_what_is_newer(name, limit, leaves_bfloat16_out, leaves_tiles_out):
    told = f"{name}={limit}"
    assert mask_of_bfloat16({name: limit}) == (told if leaves_bfloat16_out else None)
    assert mask_of_tiles({name: limit}) == (told if leaves_tiles_out else None)


def test_nothing_set_leaves_nothing_out():
    assert mask_of_bfloat16({}) is None
    assert mask_of_tiles({}) is None


def test_the_older_name_counts_only_where_the_newer_is_not_set():
    assert mask_of_bfloat16({NEW: "ALL", OLD: "AVX2"}) is None
    assert mask_of_bfloat16({NEW: "AVX2", OLD: "ALL"}) == f"{NEW}=AVX2"
    assert mask_of_bfloat16({NEW: "", OLD: "AVX2"}) == f"{OLD}=AVX2"
