// Rounds rows with all threads, to memory that is kept for the next.
#pragma once
#include "rounded_row.h"
#include "tensors.h"

namespace tetrad {

class RowBuffer {
 public:
  template <typename In>
  RoundedRows round(const Groups& groups, const In* x, int64_t rows) {
    constexpr bool kMayOrder = std::is_same_v<In, float>;
    STD_TORCH_CHECK(kMayOrder || !groups.permutation, "rows are put in order in float32 alone");
    grown(values_, rows * groups.in);
    grown(sums_, rows * groups.count());
    by_rows(rows, groups.in, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++) round_one(groups, x, r);
    });
    return {values_.data(), sums_.data()};
  }

 private:
  template <typename In>
  void round_one(const Groups& groups, const In* x, int64_t row) {
    BFloat16* values = values_.data() + row * groups.in;
    float* sums = sums_.data() + row * groups.count();
    if constexpr (std::is_same_v<In, float>) {
      if (groups.permutation)
        return round_row_in_order(groups, x + row * groups.in, values, sums);
    }
    round_row(groups, x + row * groups.in, values, sums);
  }

  std::vector<BFloat16> values_;
  std::vector<float> sums_;
};

}  // namespace tetrad
