// Kinds of numbers in memory, sixteen of them at a time as float32, and functions of them.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace tetrad {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

constexpr int64_t kLanes = 16;  // float32 in a register

// The first n of sixteen lanes; none where n ≤ 0, all where n ≥ 16.
inline __mmask16 first_lanes(int64_t n) {
  if (n >= kLanes) return __mmask16(0xFFFF);
  return n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
}

inline __m512 widen(__m256i bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}
inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
// 32 bfloat16: those of `low` first.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const BFloat16* from) {
  return widen(_mm256_loadu_si256((const __m256i*)from));
}
inline __m512 load(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
inline __m512 load(const float* from, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}
inline __m512 load(const BFloat16* from, __mmask16 lanes) {
  return widen(_mm256_maskz_loadu_epi16(lanes, from));
}

inline void store(float* to, __m512 x) { _mm512_storeu_ps(to, x); }
inline void store(BFloat16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, narrow(x)); }
inline void store(Half* to, __m512 x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(float* to, __m512 x, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, x); }
inline void store(BFloat16* to, __m512 x, __mmask16 lanes) {
  _mm256_mask_storeu_epi16(to, lanes, narrow(x));
}

// e to the power of x, off by 2e-7 relative at most; 0 where x is below -87.3, as in softmax, and
// e^88.3 where it is above 88.3.
//
// x = n ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two parts (Cody and Waite); the polynomial in r is
// that of Cephes' expf.
inline __m512 exponential(__m512 x) {
  const __mmask16 vanishing = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_set1_ps(88.3f), x);  // this way round NaN stays
  const __m512 n = _mm512_roundscale_ps(
      _mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  const __m512 square = _mm512_mul_ps(r, r);
  p = _mm512_fmadd_ps(p, square, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_maskz_mov_ps(__mmask16(~vanishing), _mm512_scalef_ps(p, n));
}

// The sums of sixteen registers' lanes, in order.
inline __m512 lane_sums(const __m512 (&x)[kLanes]) {
  __m512 pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; i++)
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                             _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 4; i++) {
    const __m512d first = _mm512_castps_pd(pairs[2 * i]);
    const __m512d second = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
  }
  for (int i = 0; i < 2; i++)
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2 * i], quads[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(quads[2 * i], quads[2 * i + 1], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                       _mm512_shuffle_f32x4(halves[0], halves[1], 0xDD));
}

// Calls use with a number of rows, of which kMost are taken where there are more, as a constant.
template <int kMost, typename Use>
inline void with_rows(int64_t rows, const Use& use) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, use);
  }
  use(std::integral_constant<int, kMost>());
}

// Into how many rows at a time so many are divided evenly: 8 are 4 and 4 where 6 are the most.
inline int64_t rows_at_once(int64_t rows, int64_t most) {
  const int64_t passes = std::max<int64_t>(1, (rows + most - 1) / most);
  return (rows + passes - 1) / passes;
}

// Memory that is kept from call to call grows, and is never filled for nothing.
template <typename T>
inline T* grown(std::vector<T>& memory, int64_t numbers) {
  if (int64_t(memory.size()) < numbers) memory.resize(numbers);
  return memory.data();
}

}  // namespace tetrad
