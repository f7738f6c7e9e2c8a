// Attention of single tokens, in float32.
//
// What a token sees is divided into parts that begin at fixed positions, each by itself and in any
// thread; the parts of a row are put together in their order.
#pragma once
#include "attention.h"

namespace tetrad {

constexpr int64_t kPart = 128;  // tokens of a part

// What a part gives of one query head: weights' sum and weighted values, both by e^-top.
struct PartSums {
  float* values;  // [dim]
  float* top;
  float* sum;
};

// Scores of one query [kDim] with the keys of a part; returns the largest.
template <int kDim, typename Kept>
inline float score_part(const float* query, const Kept* const* keys, int64_t tokens, float scale,
                        float* scores) {
  constexpr int kParts = kDim / kLanes;
  __m512 q[kParts];
  for (int i = 0; i < kParts; i++)
    q[i] = _mm512_mul_ps(_mm512_set1_ps(scale), load(query + i * kLanes));
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512 top = lowest;
  for (int64_t t = 0; t < tokens; t += kLanes) {
    __m512 products[kLanes];
    for (int j = 0; j < kLanes; j++) {
      products[j] = _mm512_mul_ps(q[0], load(keys[t + j]));
      for (int i = 1; i < kParts; i++)
        products[j] = _mm512_fmadd_ps(q[i], load(keys[t + j] + i * kLanes), products[j]);
    }
    const __m512 score =
        _mm512_mask_mov_ps(lowest, first_lanes(tokens - t), lane_sums(products));
    store(scores + t, score);
    top = _mm512_max_ps(top, score);
  }
  return _mm512_reduce_max_ps(top);
}

// Scores → e^(score - top); returns their sum.
inline float weigh_part(float* scores, int64_t tokens, float top) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const __m512 weights = _mm512_maskz_mov_ps(
        first_lanes(tokens - t), exponential(_mm512_sub_ps(load(scores + t), _mm512_set1_ps(top))));
    store(scores + t, weights);
    sum = _mm512_add_ps(sum, weights);
  }
  return _mm512_reduce_add_ps(sum);
}

// One key head's tokens from `from` to `to`, all of one part, for the query heads that share it.
template <int kDim, typename Kept>
inline void attend_part(const float* queries, int64_t group, const KvLayer<Kept>& kv, int64_t head,
                        const int64_t* table, int64_t from, int64_t to, float scale,
                        const PartSums* sums) {
  constexpr int kParts = kDim / kLanes;
  alignas(64) float weights[kPart];
  const Kept* keys[kPart];
  const int64_t tokens = to - from;
  // Filled up with the last key, whose scores are hidden.
  for (int64_t t = 0; t < (tokens + kLanes - 1) / kLanes * kLanes; t++)
    keys[t] = kv.key(table, from + std::min(t, tokens - 1), head);
  for (int64_t g = 0; g < group; g++) {
    const float top = score_part<kDim>(queries + g * kDim, keys, tokens, scale, weights);
    *sums[g].top = top;
    *sums[g].sum = weigh_part(weights, tokens, top);
    __m512 values[kParts];
    for (int i = 0; i < kParts; i++) values[i] = _mm512_setzero_ps();
    for (int64_t t = 0; t < tokens; t++) {
      const __m512 weight = _mm512_set1_ps(weights[t]);
      const Kept* value = keys[t] + kv.to_value();
      for (int i = 0; i < kParts; i++)
        values[i] = _mm512_fmadd_ps(weight, load(value + i * kLanes), values[i]);
    }
    for (int i = 0; i < kParts; i++) store(sums[g].values + i * kLanes, values[i]);
  }
}

// Puts a row's parts together; values [parts] at `stride`, tops and sums at `step`.
inline void join_parts(const float* values, int64_t stride, const float* tops, const float* sums,
                       int64_t step, int64_t parts, int64_t dim, float* out) {
  float top = tops[0];
  for (int64_t p = 1; p < parts; p++) top = std::max(top, tops[p * step]);
  float sum = 0;
  std::memset(out, 0, dim * sizeof(float));
  for (int64_t p = 0; p < parts; p++) {
    const float factor = _mm512_cvtss_f32(exponential(_mm512_set1_ps(tops[p * step] - top)));
    sum += factor * sums[p * step];
    for (int64_t i = 0; i < dim; i += kLanes) {
      const __m512 more = _mm512_mul_ps(_mm512_set1_ps(factor), load(values + p * stride + i));
      store(out + i, _mm512_add_ps(load(out + i), more));
    }
  }
  const __m512 by = _mm512_set1_ps(1.0f / sum);
  for (int64_t i = 0; i < dim; i += kLanes) store(out + i, _mm512_mul_ps(load(out + i), by));
}

}  // namespace tetrad
