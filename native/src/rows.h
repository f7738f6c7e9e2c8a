// Norms, rotation and activation, a row at a time.
#pragma once
#include "numbers.h"

namespace tetrad {

// 1 / rms of a row [width]: its squares are summed sixteen and sixteen, always in the same order.
inline float inverse_rms(const float* x, int64_t width, float eps) {
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    const __m512 first = load(x + i), second = load(x + i + kLanes);
    even = _mm512_fmadd_ps(first, first, even);
    odd = _mm512_fmadd_ps(second, second, odd);
  }
  for (; i < width; i += kLanes) {
    const __m512 rest = load(x + i, first_lanes(width - i));
    even = _mm512_fmadd_ps(rest, rest, even);
  }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  return 1.0f / std::sqrt(sum / float(width) + eps);
}

template <typename Out>
inline void rms_norm(const float* x, const float* weight, float eps, int64_t width, Out* out) {
  const __m512 factor = _mm512_set1_ps(inverse_rms(x, width, eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 lanes = first_lanes(width - i);
    const __m512 unit = _mm512_mul_ps(load(x + i, lanes), factor);
    store(out + i, _mm512_mul_ps(unit, load(weight + i, lanes)), lanes);
  }
}

template <typename In>
inline void add(float* to, const In* x, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 lanes = first_lanes(width - i);
    store(to + i, _mm512_add_ps(load(to + i, lanes), load(x + i, lanes)), lanes);
  }
}

// out = gate / (1 + e^-gate) * up
template <typename In, typename Out>
inline void silu_mul(const In* gate, const In* up, int64_t width, Out* out) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 lanes = first_lanes(width - i);
    const __m512 x = load(gate + i, lanes);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
    const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(one, e));
    store(out + i, _mm512_mul_ps(silu, load(up + i, lanes)), lanes);
  }
}

// Turns a head [dim] by its position's cosine and sine [dim], the sine's first half negated.
inline void rotate(float* x, const float* cos, const float* sin, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const __mmask16 lanes = first_lanes(half - i);
    const __m512 first = load(x + i, lanes), second = load(x + half + i, lanes);
    const auto turned = [&](__m512 own, __m512 other, int64_t at) {
      const __m512 straight = _mm512_mul_ps(own, load(cos + at, lanes));
      return _mm512_fmadd_ps(other, load(sin + at, lanes), straight);
    };
    store(x + i, turned(first, second, i), lanes);
    store(x + half + i, turned(second, first, half + i), lanes);
  }
}

// How a row of queries, keys and values is divided.
struct Heads {
  int64_t queries, keys, dim;

  int64_t width() const { return (queries + 2 * keys) * dim; }
};

struct HeadNorm {
  const float* query;  // [dim]; null where there is none
  const float* key;
  float eps;
};

// Normalises and turns the queries and keys of a row [heads.width()], in place.
inline void rotate_row(float* row, const Heads& heads, const HeadNorm& norm, const float* rotation,
                       int64_t position) {
  const float* cos = rotation + position * 2 * heads.dim;
  for (int64_t head = 0; head < heads.queries + heads.keys; head++) {
    float* x = row + head * heads.dim;
    if (norm.query)
      rms_norm(x, head < heads.queries ? norm.query : norm.key, norm.eps, heads.dim, x);
    rotate(x, cos, cos + heads.dim, heads.dim);
  }
}

// Keeps a row's keys and values, which lie side by side.
template <typename Kept>
inline void keep(const float* from, Kept* to, int64_t width) {
  if constexpr (std::is_same_v<Kept, float>) {
    std::memcpy(to, from, width * sizeof(float));
  } else {
    for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(from + i));
  }
}

}  // namespace tetrad
