// Products with weights in PyTorch's int4 blocks.
//
// A block is 64 outputs. It holds 32 bytes for each input in turn; byte i has output i in its low
// half and output i + 32 in its high half. With two planes, all inputs' upper halves come first,
// then all inputs' lower halves. By group of inputs and output, weight = level * scale + minimum.
//
// Sums of levels and activations are taken group by group, over pairs of inputs in their order, so
// that a row's bits depend on no other row.
#pragma once
#include "rounded_row.h"

namespace tetrad {

constexpr int64_t kBlock = 64;         // outputs of a block
constexpr int64_t kBytes = kBlock / 2;  // of a block, for each input

struct Int4Weight {
  const uint8_t* packed;       // [padded_out / 64][planes * in][32]
  const BFloat16* scales;      // [groups][padded_out][2], of the last plane: scale, minimum
  const float* bias;           // [out]; null where there is none
  const int64_t* permutation;  // [in]: place → input; null where inputs lie as they should
  int64_t in, out, padded_out, group_size, groups, planes;
};

// Two inputs' levels of sixteen outputs, side by side as the dot product takes them.
struct LevelPairs {
  __m512bh low, high;  // of the outputs in the bytes' low halves; in their high halves
};

// The 4-bit codes' levels, code - 8, as bfloat16.
alignas(64) constexpr uint16_t kLevels[32] = {
    0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80,  //
    0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,  //
    0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80,  //
    0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};

// Which bytes of two inputs' 64 go to which words, for the first sixteen outputs of the bytes' halves
// and for the others: output by output, the two inputs' bytes side by side, each in a word's lower half.
struct PairOrder {
  alignas(64) uint8_t bytes[2][64] = {};

  constexpr PairOrder() {
    for (int half = 0; half < 2; half++)
      for (int output = 0; output < 16; output++)
        for (int input = 0; input < 2; input++)
          bytes[half][output * 4 + input * 2] = uint8_t(input * kBytes + half * 16 + output);
  }
};
inline constexpr PairOrder kPairOrder;

inline __m512i words_of_pair(const uint8_t* pair, int half) {
  constexpr __mmask64 kLowerHalves = 0x5555555555555555;
  const __m512i order = _mm512_load_si512(kPairOrder.bytes[half]);
  return _mm512_maskz_permutexvar_epi8(kLowerHalves, order, _mm512_loadu_si512(pair));
}

// Codes of 8 bits in the lower half of each of 32 words → their levels, code - 128, as bfloat16.
inline __m512bh levels_of_codes(__m512i codes) {
  const __m512i levels = _mm512_sub_epi16(codes, _mm512_set1_epi16(128));
  const __m512 first = _mm512_cvtepi32_ps(
      _mm512_srai_epi32(_mm512_slli_epi32(levels, 16), 16));
  const __m512 second = _mm512_cvtepi32_ps(_mm512_srai_epi32(levels, 16));
  // Eight bits are exact in a bfloat16: the lower half of each float is zero.
  return (__m512bh)_mm512_or_si512(
      _mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}

// pair: two inputs' bytes; half: whose bytes of theirs, the first sixteen or the others.
template <int kPlanes>
inline LevelPairs level_pairs(const uint8_t* pair, int64_t in, int half) {
  const __m512i upper = words_of_pair(pair, half);
  if constexpr (kPlanes == 1) {
    const __m512i table = _mm512_load_si512(kLevels);
    // The lookup reads five bits of each word; the table holds the sixteen levels twice.
    return {(__m512bh)_mm512_permutexvar_epi16(upper, table),
            (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(upper, 4), table)};
  } else {
    const __m512i lower = words_of_pair(pair + in * kBytes, half);
    const __m512i low_half = _mm512_set1_epi16(15), high_half = _mm512_set1_epi16(240);
    const __m512i low = _mm512_or_si512(
        _mm512_slli_epi16(_mm512_and_si512(upper, low_half), 4),
        _mm512_and_si512(lower, low_half));
    const __m512i high =
        _mm512_or_si512(_mm512_and_si512(upper, high_half), _mm512_srli_epi16(lower, 4));
    return {levels_of_codes(low), levels_of_codes(high)};
  }
}

// Sixteen outputs' scales and minima of a group.
struct Scales {
  __m512 scale, minimum;
};

template <int kPlanes>
inline Scales scales_at(const BFloat16* at) {
  const __m512i both = _mm512_loadu_si512(at);
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  const __m512 minimum =
      _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int32_t(0xFFFF0000))));
  // Stored minima belong to levels of two halves, both counted from 8: code - 136.
  if constexpr (kPlanes == 2) {
    return {scale, _mm512_fnmadd_ps(_mm512_set1_ps(8.0f), scale, minimum)};
  }
  return {scale, minimum};
}

// Where in a block the outputs of a quarter begin: quarters from the low halves of the bytes first.
template <int kQuarters>
constexpr int64_t place_of(int quarter) {
  constexpr int kPairs = kQuarters / 2;
  return quarter < kPairs ? quarter * kLanes : kBlock / 2 + (quarter - kPairs) * kLanes;
}

// Some rows' products with a block (four quarters of 16 outputs) or with half of one (two, from
// byte `half` * 16 of each input's).
template <int kPlanes, int kRows, int kQuarters, typename Out>
inline void multiply_rows(
    const Int4Weight& w, int64_t block, int half, const RoundedRows& x, Out* out, int64_t stride) {
  constexpr int kPairs = kQuarters / 2;
  const int64_t first_output = block * kBlock + half * kLanes;
  const uint8_t* packed = w.packed + block * w.planes * w.in * kBytes;
  const BFloat16* scales = w.scales + first_output * 2;
  __m512 total[kRows][kQuarters];
  for (int r = 0; r < kRows; r++)
    for (int q = 0; q < kQuarters; q++) total[r][q] = _mm512_setzero_ps();
  for (int64_t group = 0; group < w.groups; group++) {
    const int64_t first_input = group * w.group_size;
    __m512 sum[kRows][kQuarters];
    for (int r = 0; r < kRows; r++)
      for (int q = 0; q < kQuarters; q++) sum[r][q] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < w.group_size / 2; pair++) {
      const uint8_t* bytes = packed + (first_input + pair * 2) * kBytes;
      __m512bh level[kQuarters];
      for (int q = 0; q < kPairs; q++) {
        const LevelPairs both = level_pairs<kPlanes>(bytes, w.in, half + q);
        level[q] = both.low;
        level[kPairs + q] = both.high;
      }
      for (int r = 0; r < kRows; r++) {
        int32_t two;
        std::memcpy(&two, x.values + r * w.in + first_input + pair * 2, sizeof two);
        const __m512bh value = (__m512bh)_mm512_set1_epi32(two);
        for (int q = 0; q < kQuarters; q++)
          sum[r][q] = _mm512_dpbf16_ps(sum[r][q], level[q], value);
      }
    }
    for (int q = 0; q < kQuarters; q++) {
      const Scales of =
          scales_at<kPlanes>(scales + (group * w.padded_out + place_of<kQuarters>(q)) * 2);
      for (int r = 0; r < kRows; r++) {
        const __m512 inputs = _mm512_set1_ps(x.sums[r * w.groups + group]);
        const __m512 scaled = _mm512_fmadd_ps(of.scale, sum[r][q], total[r][q]);
        total[r][q] = _mm512_fmadd_ps(of.minimum, inputs, scaled);
      }
    }
  }
  for (int q = 0; q < kQuarters; q++) {
    const int64_t place = first_output + place_of<kQuarters>(q);
    const __mmask16 lanes = first_lanes(w.out - place);
    for (int r = 0; r < kRows; r++) {
      if (w.bias) total[r][q] = _mm512_add_ps(total[r][q], load(w.bias + place, lanes));
      store(out + r * stride + place, total[r][q], lanes);
    }
  }
}

// Some rows' products with the halves of blocks from `from` to `to`: whole blocks where both are in.
template <int kPlanes, int kRows, typename Out>
inline void multiply_halves(const Int4Weight& w, int64_t from, int64_t to, const RoundedRows& x,
                            Out* out, int64_t stride) {
  for (int64_t half = from; half < to; half++) {
    if (half % 2 == 0 && half + 1 < to) {
      multiply_rows<kPlanes, kRows, 4>(w, half / 2, 0, x, out, stride);
      half++;
    } else {
      multiply_rows<kPlanes, kRows, 2>(w, half / 2, int(half % 2), x, out, stride);
    }
  }
}

constexpr int64_t kMostRows = 6;  // whose sums fit into registers, with a block's four quarters

// All rows' products with the halves of blocks from `from` to `to`; out: [rows] at a stride.
template <typename Out>
inline void multiply_range(const Int4Weight& w, int64_t from, int64_t to, const RoundedRows& x,
                           int64_t rows, Out* out, int64_t stride) {
  const int64_t at_once = rows_at_once(rows, kMostRows);
  for (int64_t row = 0; row < rows; row += at_once)
    with_rows<kMostRows>(std::min(at_once, rows - row), [&](auto some) {
      const RoundedRows those{x.values + row * w.in, x.sums + row * w.groups};
      if (w.planes == 1)
        multiply_halves<1, some>(w, from, to, those, out + row * stride, stride);
      else
        multiply_halves<2, some>(w, from, to, those, out + row * stride, stride);
    });
}

inline int64_t halves_of(const Int4Weight& w) { return w.padded_out / kBlock * 2; }

// Goes through a block's weights, scaled and rounded to bfloat16: `keep` gets the first of two
// inputs, where in the block sixteen outputs begin, and both inputs' weights of these.
template <int kPlanes, typename Keep>
inline void unpack_block_by(const Int4Weight& w, int64_t block, const Keep& keep) {
  const __m512i upper = _mm512_set1_epi32(int32_t(0xFFFF0000));
  const uint8_t* packed = w.packed + block * w.planes * w.in * kBytes;
  for (int64_t group = 0; group < w.groups; group++) {
    Scales of[4];
    for (int q = 0; q < 4; q++)
      of[q] = scales_at<kPlanes>(
          w.scales + (group * w.padded_out + block * kBlock + place_of<4>(q)) * 2);
    for (int64_t i = group * w.group_size; i < (group + 1) * w.group_size; i += 2)
      for (int half = 0; half < 2; half++) {
        const LevelPairs both = level_pairs<kPlanes>(packed + i * kBytes, w.in, half);
        const __m512i pairs[2] = {(__m512i)both.low, (__m512i)both.high};
        for (int h = 0; h < 2; h++) {
          const int quarter = h * 2 + half;
          const Scales& by = of[quarter];
          const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs[h], 16));
          const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(pairs[h], upper));
          keep(i, place_of<4>(quarter), narrow(_mm512_fmadd_ps(first, by.scale, by.minimum)),
               narrow(_mm512_fmadd_ps(second, by.scale, by.minimum)));
        }
      }
  }
}

template <typename Keep>
inline void unpack_block(const Int4Weight& w, int64_t block, const Keep& keep) {
  if (w.planes == 1)
    unpack_block_by<1>(w, block, keep);
  else
    unpack_block_by<2>(w, block, keep);
}

}  // namespace tetrad
