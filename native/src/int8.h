// Products with 8-bit weights that have one scale an output, row by row as PyTorch keeps them.
//
// weight = (code + offset) * scale. A code of 8 bits is exact in bfloat16; sums are taken sixteen
// side by side over the inputs, and those of sixteen outputs are then added up at once. A row's bits
// depend on no other row.
#pragma once
#include "numbers.h"

namespace tetrad {

struct Int8Weight {
  const int8_t* codes;   // [out][in]
  const float* scales;   // [out]
  const float* offsets;  // [out]; null where all are zero
  const float* bias;     // [out]; null where there is none
  int64_t in, out;
};

constexpr int64_t kInt8Outputs = 16;   // added up at once
constexpr int64_t kInt8MostRows = 12;  // whose sums fit into registers

// 32 codes as bfloat16.
inline __m512bh levels_of_int8(const int8_t* codes) {
  const __m512 first =
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
  const __m512 second =
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(codes + kLanes))));
  return (__m512bh)narrow(first, second);
}

// The sums of some rows [rows, in] with one output's codes, sixteen side by side.
template <int kRows>
inline void sum_codes(const Int8Weight& w, int64_t output, const BFloat16* x,
                      __m512 (&sums)[kRows][kInt8Outputs]) {
  const int8_t* codes = w.codes + output * w.in;
  __m512 sum[kRows];
  for (int r = 0; r < kRows; r++) sum[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < w.in; i += 2 * kLanes) {
    const __m512bh levels = levels_of_int8(codes + i);
    for (int r = 0; r < kRows; r++) {
      const __m512bh values = (__m512bh)_mm512_loadu_si512(x + r * w.in + i);
      sum[r] = _mm512_dpbf16_ps(sum[r], levels, values);
    }
  }
  for (int r = 0; r < kRows; r++) sums[r][output % kInt8Outputs] = sum[r];
}

// Some rows times sixteen outputs; row_sums: [rows], of each row's values.
template <int kRows, typename Out>
inline void multiply_int8_rows(const Int8Weight& w, int64_t first, const BFloat16* x,
                               const float* row_sums, Out* out) {
  __m512 sums[kRows][kInt8Outputs];
  const int64_t outputs = std::min(kInt8Outputs, w.out - first);
  for (int64_t n = 0; n < outputs; n++) sum_codes<kRows>(w, first + n, x, sums);
  for (int64_t n = outputs; n < kInt8Outputs; n++)
    for (int r = 0; r < kRows; r++) sums[r][n] = _mm512_setzero_ps();
  const __mmask16 lanes = first_lanes(outputs);
  const __m512 scales = load(w.scales + first, lanes);
  for (int r = 0; r < kRows; r++) {
    __m512 product = lane_sums(sums[r]);
    if (w.offsets) {
      const __m512 offsets = load(w.offsets + first, lanes);
      product = _mm512_fmadd_ps(offsets, _mm512_set1_ps(row_sums[r]), product);
    }
    product = _mm512_mul_ps(product, scales);
    if (w.bias) product = _mm512_add_ps(product, load(w.bias + first, lanes));
    store(out + r * w.out + first, product, lanes);
  }
}

// All rows times the outputs in sixteens from `from` to `to`.
template <typename Out>
inline void multiply_int8_range(const Int8Weight& w, int64_t from, int64_t to, const BFloat16* x,
                                const float* row_sums, int64_t rows, Out* out) {
  const int64_t at_once = rows_at_once(rows, kInt8MostRows);
  for (int64_t row = 0; row < rows; row += at_once)
    with_rows<kInt8MostRows>(std::min(at_once, rows - row), [&](auto some) {
      for (int64_t n = from; n < to; n++)
        multiply_int8_rows<some>(w, n * kInt8Outputs, x + row * w.in, row_sums + row,
                                 out + row * w.out);
    });
}

}  // namespace tetrad
