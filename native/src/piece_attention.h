// Attention of stretches of prompts, in bfloat16 with float32 sums and softmax.
//
// Keys are looked at in blocks that begin at fixed positions, all of them by each row in one order,
// with the softmax corrected as larger scores come up. What a row gives therefore depends on its
// position and what it sees, not on the rows that it is computed with.
#pragma once
#include "attention.h"

namespace tetrad {

constexpr int64_t kKeys = 64;  // of a block
constexpr int64_t kQueryRows = 36;  // of queries at a time
constexpr int64_t kRowsAtOnce = 6;  // of which so many share what is loaded into registers
constexpr int64_t kMaxHeadDim = 256;
constexpr float kLowest = -1e30f;  // below any score, and finite

// Keys of a head, packed by blocks: [dim / 2][64 keys] of two neighbours in dim.
// Values of a head: [32][dim] of two neighbouring tokens.
inline int64_t packed_numbers(int64_t blocks, int64_t dim) { return blocks * kKeys * dim / 2; }

// sums[r] += a[r] · b: rows of bfloat16, b [pairs][stride] of two neighbours in the sum.
template <int kRows, int kParts>
inline void add_products(const BFloat16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                         int64_t pairs, __m512 (&sums)[kRows][kParts]) {
  for (int64_t p = 0; p < pairs; p++) {
    __m512bh right[kParts];
    for (int i = 0; i < kParts; i++)
      right[i] = (__m512bh)_mm512_loadu_si512(b + p * b_stride + i * kLanes);
    for (int r = 0; r < kRows; r++) {
      int32_t two;
      std::memcpy(&two, a + r * a_stride + p * 2, sizeof two);
      const __m512bh left = (__m512bh)_mm512_set1_epi32(two);
      for (int i = 0; i < kParts; i++) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], right[i], left);
    }
  }
}

// Scores of rows with a block's keys, out: [rows][64].
template <int kRows>
inline void score_block(const BFloat16* query, int64_t dim, const uint32_t* keys, float* out) {
  __m512 sums[kRows][4];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 4; i++) sums[r][i] = _mm512_setzero_ps();
  add_products<kRows, 4>(query, dim, keys, kKeys, dim / 2, sums);
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 4; i++) store(out + r * kKeys + i * kLanes, sums[r][i]);
}

// out[r] = out[r] * factors[r] + weights[r] · values, for kParts * 16 of the head's width.
template <int kRows, int kParts>
inline void add_weighted(const BFloat16* weights, const uint32_t* values, int64_t dim,
                         const float* factors, float* out) {
  __m512 sums[kRows][kParts];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kParts; i++)
      sums[r][i] = _mm512_mul_ps(_mm512_set1_ps(factors[r]), load(out + r * dim + i * kLanes));
  add_products<kRows, kParts>(weights, kKeys, values, dim, kKeys / 2, sums);
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kParts; i++) store(out + r * dim + i * kLanes, sums[r][i]);
}

template <int kRows>
inline void weigh_values(const BFloat16* weights, const uint32_t* values, int64_t dim,
                         const float* factors, float* out) {
  int64_t d = 0;
  for (; d + 64 <= dim; d += 64)
    add_weighted<kRows, 4>(weights, values + d, dim, factors, out + d);
  for (; d < dim; d += 32) add_weighted<kRows, 2>(weights, values + d, dim, factors, out + d);
}

// Packs a block's keys; kept: its tokens, null where there are no more.
template <typename Kept>
inline void pack_keys(const Kept* const* kept, int64_t dim, uint32_t* out) {
  const __m512i ordinals =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i column = _mm512_mullo_epi32(ordinals, _mm512_set1_epi32(kLanes));
  for (int64_t t = 0; t < kKeys; t += kLanes) {
    for (int64_t d = 0; d < dim; d += 2 * kLanes) {
      alignas(64) uint32_t square[kLanes][kLanes];  // [tokens][pairs], to be turned
      for (int64_t i = 0; i < kLanes; i++) {
        const Kept* key = kept[t + i];
        const __m512i pairs =
            key ? narrow(load(key + d), load(key + d + kLanes)) : _mm512_setzero_si512();
        _mm512_store_si512(square[i], pairs);
      }
      for (int64_t j = 0; j < kLanes; j++)
        _mm512_storeu_si512(out + (d / 2 + j) * kKeys + t,
                            _mm512_i32gather_epi32(column, (const int*)square + j, 4));
    }
  }
}

// Packs a block's values; kept: its tokens' keys, null where there are no more.
template <typename Kept>
inline void pack_values(const Kept* const* kept, int64_t to_value, int64_t dim, uint32_t* out) {
  const auto half = [&](const Kept* key, int64_t d) {
    return key ? _mm512_cvtepu16_epi32(narrow(load(key + to_value + d))) : _mm512_setzero_si512();
  };
  for (int64_t pair = 0; pair < kKeys / 2; pair++)
    for (int64_t d = 0; d < dim; d += kLanes) {
      const __m512i first = half(kept[2 * pair], d), second = half(kept[2 * pair + 1], d);
      _mm512_storeu_si512(out + pair * dim + d,
                          _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
}

// A thread's memory for one those.
struct QueryBuffer {
  alignas(64) BFloat16 query[kQueryRows * kMaxHeadDim];
  alignas(64) float scores[kQueryRows * kKeys];
  alignas(64) BFloat16 weights[kQueryRows * kKeys];
  alignas(64) float out[kQueryRows * kMaxHeadDim];
  float top[kQueryRows], sum[kQueryRows], factor[kQueryRows];
};

// Some rows of one head, at positions that follow each other.
struct QueryRows {
  const float* query;  // [rows] at a stride
  int64_t query_stride, rows, first_position, dim, window;
  float scale;
  const uint32_t* keys;    // packed, from `first_block` on
  const uint32_t* values;  // the like
  int64_t first_block;
};

// Turns a row's scores with a block into weights, and corrects what it has summed so far.
inline void weigh_block(const QueryRows& those, int64_t row, int64_t block, QueryBuffer& buffer) {
  // The row sees keys of the block from `low` on, below `high`.
  const int64_t position = those.first_position + row;
  const int64_t high = position + 1 - block * kKeys;
  const int64_t low = first_seen(position, those.window) - block * kKeys;
  const __m512 scale = _mm512_set1_ps(those.scale), hidden = _mm512_set1_ps(kLowest);
  __m512 scores[4], top = _mm512_set1_ps(buffer.top[row]);
  __mmask16 seen[4];
  for (int i = 0; i < 4; i++) {
    seen[i] = first_lanes(high - i * kLanes) & __mmask16(~first_lanes(low - i * kLanes));
    const __m512 products = load(buffer.scores + row * kKeys + i * kLanes);
    scores[i] = _mm512_mask_mul_ps(hidden, seen[i], products, scale);
    top = _mm512_max_ps(top, scores[i]);
  }
  const float before = buffer.top[row], now = _mm512_reduce_max_ps(top);
  __m512 weights[4], sum = _mm512_setzero_ps();
  for (int i = 0; i < 4; i++) {
    const __m512 e = exponential(_mm512_sub_ps(scores[i], _mm512_set1_ps(now)));
    weights[i] = _mm512_maskz_mov_ps(seen[i], e);
    sum = _mm512_add_ps(sum, weights[i]);
  }
  BFloat16* out = buffer.weights + row * kKeys;
  _mm512_storeu_si512(out, narrow(weights[0], weights[1]));
  _mm512_storeu_si512(out + 2 * kLanes, narrow(weights[2], weights[3]));
  // 1 where the top stays, 0 where nothing was seen before.
  const float factor = _mm512_cvtss_f32(exponential(_mm512_set1_ps(before - now)));
  buffer.factor[row] = factor;
  buffer.sum[row] = buffer.sum[row] * factor + _mm512_reduce_add_ps(sum);
  buffer.top[row] = now;
}

template <typename Out>
inline void attend_with(const QueryRows& those, QueryBuffer& buffer, Out* out, int64_t out_stride) {
  const int64_t dim = those.dim;
  for (int64_t r = 0; r < those.rows; r++) {
    const float* query = those.query + r * those.query_stride;
    for (int64_t d = 0; d < dim; d += 2 * kLanes)
      _mm512_storeu_si512(buffer.query + r * dim + d,
                          narrow(load(query + d), load(query + d + kLanes)));
    buffer.top[r] = kLowest;
    buffer.sum[r] = 0;
  }
  std::memset(buffer.out, 0, those.rows * dim * sizeof(float));
  const int64_t first = first_seen(those.first_position, those.window) / kKeys;
  const int64_t last = (those.first_position + those.rows - 1) / kKeys;
  for (int64_t block = first; block <= last; block++) {
    const int64_t packed = packed_numbers(block - those.first_block, dim);
    for (int64_t r = 0; r < those.rows; r += kRowsAtOnce)
      with_rows<kRowsAtOnce>(those.rows - r, [&](auto rows) {
        score_block<rows>(buffer.query + r * dim, dim, those.keys + packed,
                          buffer.scores + r * kKeys);
      });
    for (int64_t r = 0; r < those.rows; r++) weigh_block(those, r, block, buffer);
    for (int64_t r = 0; r < those.rows; r += kRowsAtOnce)
      with_rows<kRowsAtOnce>(those.rows - r, [&](auto rows) {
        weigh_values<rows>(buffer.weights + r * kKeys, those.values + packed, dim,
                           buffer.factor + r, buffer.out + r * dim);
      });
  }
  for (int64_t r = 0; r < those.rows; r++) {
    const __m512 by = _mm512_set1_ps(1.0f / buffer.sum[r]);
    for (int64_t d = 0; d < dim; d += kLanes)
      store(out + r * out_stride + d, _mm512_mul_ps(load(buffer.out + r * dim + d), by));
  }
}

}  // namespace tetrad
