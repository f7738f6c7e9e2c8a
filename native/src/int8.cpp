// Products with 8-bit weights of one scale an output, as PyTorch's operation.
#include "int8_ops.h"

namespace tetrad {
namespace {

Tensor int8_multiply(const Tensor& x, const Tensor& codes, const Tensor& scales,
                     const std::optional<Tensor>& offsets, const std::optional<Tensor>& bias) {
  const Int8Weight w = int8_weight(codes, scales, offsets, bias);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == w.in, "rows have other inputs than the weight");
  const int64_t rows = x.size(0);
  Tensor out = torch::stable::new_empty(x, {rows, w.out});
  if (rows == 0) return out;
  static thread_local RowBuffer buffer;
  with_type(x.scalar_type(), "x", [&](auto* kind) {
    using Number = std::remove_pointer_t<decltype(kind)>;
    const RoundedRows rounded = buffer.round({w.in, w.in, nullptr}, data<Number>(x, "x"), rows);
    multiply(w, rounded, rows, data<Number>(out, "out"));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tetrad, m) {
  m.def(
      "int8_multiply(Tensor x, Tensor codes, Tensor scales, Tensor? offsets, Tensor? bias)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tetrad, CPU, m) { m.impl("int8_multiply", TORCH_BOX(&int8_multiply)); }

}  // namespace tetrad
