// Products with int4 weights, and unpacking them, as PyTorch's operations.
#include "int4_ops.h"

namespace tetrad {
namespace {

Tensor int4_multiply(const Tensor& x, const Tensor& packed, const Tensor& scales, int64_t planes,
                     int64_t out_features, const std::optional<Tensor>& bias) {
  const Int4Weight w = int4_weight(packed, scales, planes, out_features, bias);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == w.in, "rows have other inputs than the weight");
  const int64_t rows = x.size(0);
  Tensor out = torch::stable::new_empty(x, {rows, w.out});
  if (rows == 0) return out;
  static thread_local RowBuffer buffer;
  with_type(x.scalar_type(), "x", [&](auto* kind) {
    using Number = std::remove_pointer_t<decltype(kind)>;
    const RoundedRows rounded = round_rows(w, data<Number>(x, "x"), rows, buffer);
    multiply(w, rounded, rows, data<Number>(out, "out"));
  });
  return out;
}

Tensor int4_multiply_many(const Tensor& x, const Tensor& packed, const Tensor& scales,
                          int64_t planes, int64_t out_features, const std::optional<Tensor>& bias,
                          bool has_tiles) {
  const Int4Weight w = int4_weight(packed, scales, planes, out_features, bias);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == w.in, "rows have other inputs than the weight");
  STD_TORCH_CHECK(!has_tiles || may_use_tiles(), "the system does not give tile registers");
  const int64_t rows = x.size(0);
  Tensor out = torch::stable::new_empty(x, {rows, w.out});
  if (rows == 0) return out;
  if (x.scalar_type() == ScalarType::BFloat16) {
    multiply_many(w, data<BFloat16>(x, "x"), rows, has_tiles, data<BFloat16>(out, "out"));
    return out;
  }
  static thread_local RowBuffer buffer;
  const RoundedRows rounded = round_rows(w, data<float>(x, "x"), rows, buffer);
  multiply_many(w, rounded.values, rows, has_tiles, data<float>(out, "out"));
  return out;
}

Tensor int4_unpack(const Tensor& packed, const Tensor& scales, int64_t planes) {
  const Int4Weight w = int4_weight(packed, scales, planes, packed.size(0), std::nullopt);
  Tensor out = torch::stable::new_empty(scales, {w.in, w.padded_out});
  BFloat16* unpacked = data<BFloat16>(out, "out");
  torch::stable::parallel_for(0, w.padded_out / kBlock, 1, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; block++)
      unpack_block(w, block, [&](int64_t input, int64_t place, __m256i first, __m256i second) {
        BFloat16* at = unpacked + input * w.padded_out + block * kBlock + place;
        _mm256_storeu_si256((__m256i*)at, first);
        _mm256_storeu_si256((__m256i*)(at + w.padded_out), second);
      });
  });
  return out;
}

// like: any tensor on the CPU, which says where the question goes.
bool may_use_tiles_at(const Tensor&) { return may_use_tiles(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tetrad, m) {
  m.def(
      "int4_multiply(Tensor x, Tensor packed, Tensor scales_and_minima, int planes,"
      " int out_features, Tensor? bias) -> Tensor");
  m.def(
      "int4_multiply_many(Tensor x, Tensor packed, Tensor scales_and_minima, int planes,"
      " int out_features, Tensor? bias, bool has_tiles) -> Tensor");
  m.def("may_use_tiles(Tensor like) -> bool");
  m.def("int4_unpack(Tensor packed, Tensor scales_and_minima, int planes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tetrad, CPU, m) {
  m.impl("int4_multiply", TORCH_BOX(&int4_multiply));
  m.impl("int4_multiply_many", TORCH_BOX(&int4_multiply_many));
  m.impl("may_use_tiles", TORCH_BOX(&may_use_tiles_at));
  m.impl("int4_unpack", TORCH_BOX(&int4_unpack));
}

}  // namespace tetrad
