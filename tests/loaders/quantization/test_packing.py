"""One test per layout: known words written by hand, and exact round trips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders.quantization.packing import (
    CheckpointFormat,
    pack_awq,
    pack_gptq_codes,
    pack_gptq_zeros,
    unpack_awq,
    unpack_gptq_codes,
    unpack_gptq_zeros,
)

BITS = st.sampled_from([2, 3, 4, 8])
FORMATS = st.sampled_from(["gptq", "gptq_v2"])


def codes_of(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def column(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None]


def words(*values: int) -> Tensor:
    """int32 words, written as the 32 unsigned bits that a hex dump of the file shows."""
    signed = [value - 2**32 if value >= 2**31 else value for value in values]
    return torch.tensor(signed, dtype=torch.int32)


class TestKnownWords:
    """Words worked out on paper from the published layouts, not by the code under test."""

    def test_4bit_codes_lie_in_a_word_from_its_lowest_nibble_up(self):
        codes = column(1, 2, 3, 4, 5, 6, 7, 8)
        assert torch.equal(pack_gptq_codes(codes, 4)[:, 0], words(0x87654321))
        assert torch.equal(unpack_gptq_codes(words(0x87654321)[:, None], 4), codes)

    def test_8bit_codes_lie_in_a_word_from_its_lowest_byte_up(self):
        codes = column(0x01, 0x02, 0xAB, 0xFF)
        assert torch.equal(pack_gptq_codes(codes, 8)[:, 0], words(0xFFAB0201))
        assert torch.equal(unpack_gptq_codes(words(0xFFAB0201)[:, None], 8), codes)

    def test_2bit_codes_lie_in_a_word_from_its_lowest_pair_up(self):
        codes = column(1, 2, 3, 0, *[0] * 11, 3)
        # 0b00_11_10_01 = 0x39 at the bottom, 0b11 in the two highest bits.
        assert torch.equal(pack_gptq_codes(codes, 2)[:, 0], words(0xC0000039))
        assert torch.equal(unpack_gptq_codes(words(0xC0000039)[:, None], 2), codes)

    def test_3bit_code_10_crosses_from_the_first_word_into_the_second(self):
        """Code 10 starts at bit 30: its two low bits end word 0, its high bit begins word 1."""
        codes = column(*[0] * 10, 0b110, *[0] * 21)
        expected = words(0x80000000, 0x00000001, 0x00000000)
        assert torch.equal(pack_gptq_codes(codes, 3)[:, 0], expected)
        assert torch.equal(unpack_gptq_codes(expected[:, None], 3), codes)

    def test_3bit_code_21_crosses_from_the_second_word_into_the_third(self):
        """Code 21 starts at bit 63: one low bit ends word 1, two high bits begin word 2."""
        codes = column(*[0] * 21, 0b101, *[0] * 10)
        expected = words(0x00000000, 0x80000000, 0x00000002)
        assert torch.equal(pack_gptq_codes(codes, 3)[:, 0], expected)
        assert torch.equal(unpack_gptq_codes(expected[:, None], 3), codes)

    def test_32_equal_3bit_codes_fill_three_words(self):
        """100 repeated, low bit first, is 001001…: bit 2 of every three is set."""
        codes = column(*[0b100] * 32)
        expected = words(0x24924924, 0x49249249, 0x92492492)
        assert torch.equal(pack_gptq_codes(codes, 3)[:, 0], expected)

    def test_3bit_codes_count_up(self):
        """0 1 2 3 4 5 6 7 are the 24 bits 0xFAC688; four times that is three words."""
        codes = column(*list(range(8)) * 4)
        expected = words(0x88FAC688, 0xC688FAC6, 0xFAC688FA)
        assert torch.equal(pack_gptq_codes(codes, 3)[:, 0], expected)
        assert torch.equal(unpack_gptq_codes(expected[:, None], 3), codes)

    def test_each_output_column_has_words_of_its_own(self):
        codes = torch.cat([column(*range(16)), column(*reversed(range(16)))], dim=1)
        expected = torch.stack(
            [words(0x76543210, 0xFEDCBA98), words(0x89ABCDEF, 0x01234567)], dim=1
        )
        assert torch.equal(pack_gptq_codes(codes, 4), expected)

    def test_v1_zeros_are_stored_minus_one_along_the_output_dimension(self):
        zeros = torch.tensor([[8, 8, 8, 8, 1, 2, 3, 15]], dtype=torch.uint8)
        packed = pack_gptq_zeros(zeros, 4, checkpoint_format="gptq")
        assert torch.equal(packed[0], words(0xE2107777))
        assert torch.equal(unpack_gptq_zeros(packed, 4, checkpoint_format="gptq"), zeros)

    def test_v1_zero_of_nought_wraps_to_all_ones(self):
        zeros = torch.zeros(1, 8, dtype=torch.uint8)
        packed = pack_gptq_zeros(zeros, 4, checkpoint_format="gptq")
        assert torch.equal(packed[0], words(0xFFFFFFFF))
        assert torch.equal(unpack_gptq_zeros(packed, 4, checkpoint_format="gptq"), zeros)

    def test_v2_zeros_are_stored_as_they_are(self):
        zeros = torch.tensor([[0, 1, 2, 3, 8, 9, 14, 15]], dtype=torch.uint8)
        packed = pack_gptq_zeros(zeros, 4, checkpoint_format="gptq_v2")
        assert torch.equal(packed[0], words(0xFE983210))
        assert torch.equal(unpack_gptq_zeros(packed, 4, checkpoint_format="gptq_v2"), zeros)

    def test_3bit_v1_zeros_cross_word_borders_too(self):
        """The symmetric 3-bit zero 4 is stored as 3, and 011 repeated low bit first is 110110…."""
        zeros = torch.full((1, 32), 4, dtype=torch.uint8)
        packed = pack_gptq_zeros(zeros, 3, checkpoint_format="gptq")
        assert torch.equal(packed[0], words(0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D))

    def test_awq_nibbles_hold_columns_0_2_4_6_1_3_5_7(self):
        values = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8)
        packed = pack_awq(values)
        # Highest nibble first, as hex reads: columns 7 5 3 1 6 4 2 0.
        assert torch.equal(packed[0], words(0x75316420))
        assert torch.equal(unpack_awq(words(0x75316420)[None]), values)

    def test_awq_keeps_rows_and_words_apart(self):
        values = torch.tensor(
            [[15] * 8 + [0] * 8, [0] * 8 + [1] + [0] * 6 + [9]], dtype=torch.uint8
        )
        expected = torch.stack([words(0xFFFFFFFF, 0), words(0, 0x90000001)])
        assert torch.equal(pack_awq(values), expected)
        assert torch.equal(unpack_awq(expected), values)


class TestRoundTrips:
    @settings(deadline=None, max_examples=60)
    @given(
        bits=BITS, chunks=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 999)
    )
    def test_gptq_codes_come_back(self, bits, chunks, columns, seed):
        codes = codes_of(32 * chunks, columns, bits, seed)
        packed = pack_gptq_codes(codes, bits)
        assert packed.shape == (chunks * bits, columns)
        assert torch.equal(unpack_gptq_codes(packed, bits), codes)

    @settings(deadline=None, max_examples=60)
    @given(bits=BITS, words_=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 999))
    def test_gptq_words_come_back(self, bits, words_, columns, seed):
        """Every bit pattern is a valid word, so nothing is lost in the other direction either."""
        generator = torch.Generator().manual_seed(seed)
        rows = 3 * words_ if bits == 3 else words_
        packed = torch.randint(-(2**31), 2**31, (rows, columns), generator=generator).to(
            torch.int32
        )
        assert torch.equal(pack_gptq_codes(unpack_gptq_codes(packed, bits), bits), packed)

    @settings(deadline=None, max_examples=60)
    @given(
        bits=BITS,
        groups=st.integers(1, 40),
        chunks=st.integers(1, 5),
        checkpoint_format=FORMATS,
        seed=st.integers(0, 999),
    )
    def test_gptq_zeros_come_back(
        self, bits: int, groups: int, chunks: int, checkpoint_format: CheckpointFormat, seed: int
    ):
        zeros = codes_of(groups, 32 * chunks, bits, seed)
        packed = pack_gptq_zeros(zeros, bits, checkpoint_format=checkpoint_format)
        assert packed.shape == (groups, chunks * bits)
        assert packed.is_contiguous()
        unpacked = unpack_gptq_zeros(packed, bits, checkpoint_format=checkpoint_format)
        assert unpacked.is_contiguous()
        assert torch.equal(unpacked, zeros)

    @settings(deadline=None, max_examples=60)
    @given(rows=st.integers(1, 40), chunks=st.integers(1, 12), seed=st.integers(0, 999))
    def test_awq_values_come_back(self, rows, chunks, seed):
        values = codes_of(rows, 8 * chunks, 4, seed)
        packed = pack_awq(values)
        assert packed.shape == (rows, chunks)
        assert torch.equal(unpack_awq(packed), values)

    def test_a_slice_of_a_larger_tensor_packs_like_its_copy(self):
        codes = codes_of(128, 64, 3, seed=1)
        view = codes.t()[:32, 32:]
        assert torch.equal(pack_gptq_codes(view, 3), pack_gptq_codes(view.contiguous(), 3))
        assert torch.equal(unpack_gptq_codes(pack_gptq_codes(view, 3), 3), view)


class TestRefusals:
    @pytest.mark.parametrize(("bits", "rows"), [(2, 8), (3, 16), (4, 12), (8, 6)])
    def test_codes_that_do_not_fill_whole_words(self, bits, rows):
        with pytest.raises(ValueError, match=rf"{rows} codes of {bits} bits do not fill"):
            pack_gptq_codes(torch.zeros(rows, 4, dtype=torch.uint8), bits)

    def test_words_that_do_not_hold_whole_3bit_codes(self):
        with pytest.raises(ValueError, match="multiple of 3"):
            unpack_gptq_codes(torch.zeros(4, 4, dtype=torch.int32), 3)

    def test_a_code_too_large_for_its_bits(self):
        with pytest.raises(ValueError, match="code 8 does not fit in 3 bits"):
            pack_gptq_codes(torch.full((32, 1), 8, dtype=torch.uint8), 3)

    def test_bits_without_a_layout(self):
        with pytest.raises(ValueError, match="5-bit"):
            unpack_gptq_codes(torch.zeros(5, 1, dtype=torch.int32), 5)

    def test_awq_columns_that_do_not_fill_whole_words(self):
        with pytest.raises(ValueError, match="12 is no multiple"):
            pack_awq(torch.zeros(2, 12, dtype=torch.uint8))

    def test_a_wrong_dtype_or_rank(self):
        with pytest.raises(ValueError, match="uint8 matrix"):
            pack_gptq_codes(torch.zeros(32, 4, dtype=torch.int32), 4)
        with pytest.raises(ValueError, match="int32 matrix"):
            unpack_awq(torch.zeros(4, dtype=torch.int32))
