// An int8 weight out of tensors, and rows times it with all threads.
#pragma once
#include "int8.h"
#include "rounded_rows.h"

namespace tetrad {

inline Int8Weight int8_weight(const Tensor& codes, const Tensor& scales,
                              const std::optional<Tensor>& offsets,
                              const std::optional<Tensor>& bias) {
  check_type(codes, ScalarType::Char, "codes");
  STD_TORCH_CHECK(codes.dim() == 2 && codes.size(1) > 0 && codes.size(1) % (2 * kLanes) == 0,
                  "codes are [out, in], inputs a multiple of 32");
  const int64_t out = codes.size(0);
  STD_TORCH_CHECK(scales.numel() == out && (!offsets || offsets->numel() == out) &&
                      (!bias || bias->numel() == out),
                  "each output has a scale, and an offset and a bias where there are any");
  return {static_cast<const int8_t*>(codes.data_ptr()),
          data<float>(scales, "scales"),
          data_or_null<float>(offsets, "offsets"),
          data_or_null<float>(bias, "bias"),
          codes.size(1),
          out};
}

// out: [rows, w.out]
template <typename Out>
inline void multiply(const Int8Weight& w, const RoundedRows& x, int64_t rows, Out* out) {
  const int64_t sixteens = (w.out + kInt8Outputs - 1) / kInt8Outputs;
  torch::stable::parallel_for(0, sixteens, 1, [&](int64_t from, int64_t to) {
    multiply_int8_range(w, from, to, x.values, x.sums, rows, out);
  });
}

}  // namespace tetrad
