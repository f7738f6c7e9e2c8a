// Activations as products with packed weights take them: bfloat16, with sums of groups of inputs.
#pragma once
#include "numbers.h"

namespace tetrad {

// How a weight's inputs are grouped and in which order it wants them.
struct Groups {
  int64_t in, size;            // inputs; of a group, a multiple of 32
  const int64_t* permutation;  // [in]: place → input; null where inputs lie as they should

  int64_t count() const { return in / size; }
};

struct RoundedRows {
  const BFloat16* values;  // [rows, in]
  const float* sums;       // [rows, groups]: of each group's values
};

// Rounds a row, whose sixteen values from a place on `read` gives.
template <typename Read>
inline void round_values(const Groups& groups, const Read& read, BFloat16* values, float* sums) {
  for (int64_t group = 0; group < groups.count(); group++) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = group * groups.size; i < (group + 1) * groups.size; i += 2 * kLanes) {
      const __m512i both = narrow(read(i), read(i + kLanes));
      _mm512_storeu_si512(values + i, both);
      sum = _mm512_add_ps(sum, widen(_mm512_castsi512_si256(both)));
      sum = _mm512_add_ps(sum, widen(_mm512_extracti64x4_epi64(both, 1)));
    }
    sums[group] = _mm512_reduce_add_ps(sum);
  }
}

template <typename In>
inline void round_row(const Groups& groups, const In* x, BFloat16* values, float* sums) {
  round_values(groups, [&](int64_t place) { return load(x + place); }, values, sums);
}

// The same of a row whose inputs are to be put in the weight's order first.
inline void round_row_in_order(const Groups& groups, const float* x, BFloat16* values,
                               float* sums) {
  const auto gather = [&](int64_t place) {
    const int64_t* from = groups.permutation + place;
    const __m256 low = _mm512_i64gather_ps(_mm512_loadu_si512(from), x, sizeof(float));
    const __m256 high = _mm512_i64gather_ps(_mm512_loadu_si512(from + 8), x, sizeof(float));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  };
  round_values(groups, gather, values, sums);
}

}  // namespace tetrad
