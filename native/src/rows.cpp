// What stands between a layer's products, as PyTorch's operations.
#include "rows.h"

#include "tensors.h"

namespace tetrad {
namespace {

Tensor add_norm(const Tensor& residual, const std::optional<Tensor>& delta, const Tensor& weight,
                double eps, ScalarType type) {
  STD_TORCH_CHECK(residual.dim() == 2 && weight.numel() == residual.size(1),
                  "the norm's weight has another width than the rows");
  const int64_t rows = residual.size(0), width = residual.size(1);
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                  "the norm's result must be float32 or bfloat16");
  float* x = data<float>(residual, "residual");
  const float* by = data<float>(weight, "weight");
  if (delta) {
    STD_TORCH_CHECK(delta->dim() == 2 && delta->size(0) == rows && delta->size(1) == width,
                    "delta has another shape than the residual");
    with_type(delta->scalar_type(), "delta", [&](auto* kind) {
      const auto* added = data<std::remove_pointer_t<decltype(kind)>>(*delta, "delta");
      by_rows(rows, width, [&](int64_t from, int64_t to) {
        add(x + from * width, added + from * width, (to - from) * width);
      });
    });
  }
  Tensor out = torch::stable::new_empty(residual, {rows, width}, type);
  with_type(type, "the norm's result", [&](auto* kind) {
    auto* normed = data<std::remove_pointer_t<decltype(kind)>>(out, "out");
    by_rows(rows, width, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++)
        rms_norm(x + r * width, by, float(eps), width, normed + r * width);
    });
  });
  return out;
}

Tensor silu_mul_of(const Tensor& gate_up) {
  STD_TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate and up have one width");
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  Tensor out = torch::stable::new_empty(gate_up, {rows, width});
  with_type(gate_up.scalar_type(), "gate_up", [&](auto* kind) {
    using Number = std::remove_pointer_t<decltype(kind)>;
    const Number* gate = data<Number>(gate_up, "gate_up");
    Number* product = data<Number>(out, "out");
    by_rows(rows, 4 * width, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++) {
        const Number* row = gate + r * 2 * width;
        silu_mul(row, row + width, width, product + r * width);
      }
    });
  });
  return out;
}

Tensor rotate_and_store(const Tensor& qkv, const Tensor& rotation, const Tensor& positions,
                        const Tensor& slots, const Tensor& kv_layer, int64_t num_heads,
                        const std::optional<Tensor>& query_norm,
                        const std::optional<Tensor>& key_norm, double eps) {
  STD_TORCH_CHECK(kv_layer.dim() == 4 && kv_layer.size(1) == 2,
                  "keys and values are [slots, 2, heads, dim]");
  const Heads heads{num_heads, kv_layer.size(2), kv_layer.size(3)};
  const int64_t rows = qkv.size(0), num_slots = kv_layer.size(0);
  STD_TORCH_CHECK(qkv.dim() == 2 && qkv.size(1) == heads.width(),
                  "rows have other heads than keys and values");
  STD_TORCH_CHECK(heads.dim % (2 * kLanes) == 0, "heads' width must be a multiple of 32");
  STD_TORCH_CHECK(positions.numel() == rows && slots.numel() == rows,
                  "each row has a position and a slot");
  STD_TORCH_CHECK(rotation.dim() == 3 && rotation.size(1) == 2 && rotation.size(2) == heads.dim,
                  "rotation is [positions, 2, dim]");
  STD_TORCH_CHECK(query_norm.has_value() == key_norm.has_value(),
                  "queries and keys both have a norm, or neither has");
  if (query_norm.has_value())
    STD_TORCH_CHECK(query_norm->numel() == heads.dim && key_norm->numel() == heads.dim,
                    "a head's norm is as wide as the head");
  const HeadNorm norm{data_or_null<float>(query_norm, "query norm"),
                      data_or_null<float>(key_norm, "key norm"), float(eps)};
  const float* turns = data<float>(rotation, "rotation");
  const int64_t* position = data<int64_t>(positions, "positions");
  const int64_t* slot = data<int64_t>(slots, "slots");
  for (int64_t r = 0; r < rows; r++) {
    STD_TORCH_CHECK(0 <= position[r] && position[r] < rotation.size(0), "a position is too large");
    STD_TORCH_CHECK(0 <= slot[r] && slot[r] < num_slots, "a slot lies outside the cache");
  }
  Tensor out = torch::stable::new_empty(qkv, {rows, heads.queries, heads.dim}, ScalarType::Float);
  float* query = data<float>(out, "out");
  const int64_t query_width = heads.queries * heads.dim, kept_width = 2 * heads.keys * heads.dim;
  with_kept_type(kv_layer.scalar_type(), [&](auto* kept_kind) {
    auto* kept = data<std::remove_pointer_t<decltype(kept_kind)>>(kv_layer, "kv_layer");
    with_type(qkv.scalar_type(), "qkv", [&](auto* kind) {
      const auto* joined = data<std::remove_pointer_t<decltype(kind)>>(qkv, "qkv");
      by_rows(rows, 2 * heads.width(), [&](int64_t from, int64_t to) {
        std::vector<float> row(heads.width());
        for (int64_t r = from; r < to; r++) {
          for (int64_t i = 0; i < heads.width(); i += kLanes)
            store(row.data() + i, load(joined + r * heads.width() + i));
          rotate_row(row.data(), heads, norm, turns, position[r]);
          std::memcpy(query + r * query_width, row.data(), query_width * sizeof(float));
          keep(row.data() + query_width, kept + slot[r] * kept_width, kept_width);
        }
      });
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tetrad, m) {
  m.def(
      "add_norm(Tensor(a!) residual, Tensor? delta, Tensor weight, float eps, ScalarType dtype)"
      " -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  m.def(
      "rotate_and_store(Tensor qkv, Tensor rotation, Tensor positions, Tensor slots,"
      " Tensor(a!) kv_layer, int num_heads, Tensor? query_norm, Tensor? key_norm, float eps)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tetrad, CPU, m) {
  m.impl("add_norm", TORCH_BOX(&add_norm));
  m.impl("silu_mul", TORCH_BOX(&silu_mul_of));
  m.impl("rotate_and_store", TORCH_BOX(&rotate_and_store));
}

}  // namespace tetrad
