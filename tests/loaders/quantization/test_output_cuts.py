"""Which part of each stored tensor belongs to some outputs."""

from loaders.quantization.layouts import layout_of
from loaders.quantization.output_cuts import output_cuts
from loaders.quantization.packed_format import PackedFormat

ALL = slice(None)


def test_outputs_are_cut_out_of_words_columns_and_rows():
    gptq = layout_of(PackedFormat("gptq", "gptq", 4, 128))
    assert output_cuts(gptq, 256, 192, 64, 128) == {
        "qweight": (ALL, slice(64, 128)),
        "qzeros": (ALL, slice(8, 16)),
        "scales": (ALL, slice(64, 128)),
        "g_idx": (ALL,),
    }
    gemv_fast = layout_of(PackedFormat("awq", "gemv_fast", 4, 128))
    assert output_cuts(gemv_fast, 256, 192, 64, 192)["qweight"] == (slice(16, 48), ALL)
