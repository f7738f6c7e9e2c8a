// Many rows times an int4 weight: each block is unpacked once, into a cache, and meets all rows.
//
// Weights are scaled and rounded to bfloat16 first, so that sums run over all inputs; a row's bits
// depend on no other row.
#pragma once
#include "int4.h"

namespace tetrad {

// Unpacks a block as the dot product takes it: [in / 2][64 outputs] of two neighbouring inputs.
inline void unpack_panel(const Int4Weight& w, int64_t block, uint32_t* panel) {
  unpack_block(w, block, [&](int64_t input, int64_t place, __m256i first, __m256i second) {
    const __m512i low = _mm512_cvtepu16_epi32(first), high = _mm512_cvtepu16_epi32(second);
    _mm512_storeu_si512(panel + input / 2 * kBlock + place,
                        _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  });
}

// Some rows [rows, in] times a panel, to outputs from `place` on.
template <int kRows, typename Out>
inline void multiply_panel(const Int4Weight& w, const uint32_t* panel, const BFloat16* x,
                           int64_t place, Out* out) {
  __m512 sums[kRows][4];
  for (int r = 0; r < kRows; r++)
    for (int q = 0; q < 4; q++) sums[r][q] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < w.in / 2; pair++) {
    __m512bh weights[4];
    for (int q = 0; q < 4; q++)
      weights[q] = (__m512bh)_mm512_loadu_si512(panel + pair * kBlock + q * kLanes);
    for (int r = 0; r < kRows; r++) {
      int32_t two;
      std::memcpy(&two, x + r * w.in + pair * 2, sizeof two);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(two);
      for (int q = 0; q < 4; q++) sums[r][q] = _mm512_dpbf16_ps(sums[r][q], weights[q], value);
    }
  }
  for (int q = 0; q < 4; q++) {
    const int64_t first = place + q * kLanes;
    const __mmask16 lanes = first_lanes(w.out - first);
    for (int r = 0; r < kRows; r++) {
      if (w.bias) sums[r][q] = _mm512_add_ps(sums[r][q], load(w.bias + first, lanes));
      store(out + r * w.out + first, sums[r][q], lanes);
    }
  }
}

constexpr int64_t kPanelRows = 6;  // whose sums fit into registers

// All rows [rows, in] times a panel.
template <typename Out>
inline void multiply_panel_rows(const Int4Weight& w, const uint32_t* panel, const BFloat16* x,
                                int64_t rows, int64_t place, Out* out) {
  for (int64_t r = 0; r < rows; r += kPanelRows)
    with_rows<kPanelRows>(rows - r, [&](auto some) {
      multiply_panel<some>(w, panel, x + r * w.in, place, out + r * w.out);
    });
}

}  // namespace tetrad
