// Decoder layers of the Llama family for a few rows: all of them, in one call.
#include "int4_ops.h"
#include "int8_ops.h"
#include "row_attention_ops.h"
#include "rows.h"
#include "tensors.h"

namespace tetrad {
namespace {

inline const float* floats(int64_t address) { return reinterpret_cast<const float*>(address); }

// A row of the table that `native.llama_layers` makes: addresses (0: none) and sizes, in this order.
struct LinearEntry {
  int64_t weights;      // packed; codes
  int64_t scales;       // scales and minima; scales
  int64_t offsets;      // of int8 alone
  int64_t bias, permutation, in, out, padded_out, groups;
  int64_t planes;       // 0: int8

  Int4Weight int4() const {
    Int4Weight w{};
    w.packed = reinterpret_cast<const uint8_t*>(weights);
    w.scales = reinterpret_cast<const BFloat16*>(scales) + (planes - 1) * groups * padded_out * 2;
    w.bias = floats(bias);
    w.permutation = reinterpret_cast<const int64_t*>(permutation);
    w.in = in;
    w.out = out;
    w.padded_out = padded_out;
    w.group_size = in / groups;
    w.groups = groups;
    w.planes = planes;
    return w;
  }
  Int8Weight int8() const {
    return {reinterpret_cast<const int8_t*>(weights), floats(scales), floats(offsets),
            floats(bias), in, out};
  }
};

struct LayerEntry {
  int64_t attention_norm, mlp_norm, query_norm, key_norm, kv, window;
  LinearEntry qkv, output, gate_up, down;
};
constexpr int64_t kEntryNumbers = sizeof(LayerEntry) / sizeof(int64_t);

// What all layers have in common.
struct Shape {
  Heads heads;
  int64_t hidden, inner, block_size;
  float eps, head_eps, scale;
  bool are_many;   // rows, for which weights are unpacked once
  bool has_tiles;  // with which many are multiplied
};

// The rows of a step.
struct Step {
  float* residual;  // [rows, hidden]
  const float* rotation;
  const int64_t* slots;
  SeenRows seen;
};

// Runs layers one after another, in memory that is kept for the next step.
class LayerRunner {
 public:
  template <typename Kept>
  void run(const LayerEntry& layer, const Shape& shape, const Step& step) {
    const int64_t rows = step.seen.rows;
    const Heads& heads = shape.heads;
    grown(normed_, rows * shape.hidden);
    grown(joined_, rows * heads.width());
    grown(attended_, rows * heads.queries * heads.dim);
    grown(delta_, rows * shape.hidden);
    grown(gate_up_, rows * 2 * shape.inner);
    grown(inner_, rows * shape.inner);

    normalise(layer.attention_norm, shape, step);
    multiply_by(layer.qkv, normed_, rows, shape, joined_);
    attend<Kept>(layer, shape, step);
    multiply_by(layer.output, attended_, rows, shape, delta_);
    add_delta(shape, step);

    normalise(layer.mlp_norm, shape, step);
    multiply_by(layer.gate_up, normed_, rows, shape, gate_up_);
    activate(shape.inner, rows);
    multiply_by(layer.down, inner_, rows, shape, delta_);
    add_delta(shape, step);
  }

 private:
  void normalise(int64_t weight, const Shape& shape, const Step& step) {
    const int64_t width = shape.hidden;
    by_rows(step.seen.rows, width, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++)
        rms_norm(step.residual + r * width, floats(weight), shape.eps, width,
                 normed_.data() + r * width);
    });
  }

  void multiply_by(const LinearEntry& linear, const std::vector<float>& x, int64_t rows,
                   const Shape& shape, std::vector<float>& out) {
    if (linear.planes == 0) {
      const Int8Weight w = linear.int8();
      return multiply(w, rounded_.round({w.in, w.in, nullptr}, x.data(), rows), rows, out.data());
    }
    const Int4Weight w = linear.int4();
    const RoundedRows rounded = round_rows(w, x.data(), rows, rounded_);
    if (shape.are_many)
      multiply_many(w, rounded.values, rows, shape.has_tiles, out.data());
    else
      multiply(w, rounded, rows, out.data());
  }

  template <typename Kept>
  void attend(const LayerEntry& layer, const Shape& shape, const Step& step) {
    const Heads& heads = shape.heads;
    const HeadNorm norm{floats(layer.query_norm), floats(layer.key_norm), shape.head_eps};
    Kept* kept = reinterpret_cast<Kept*>(layer.kv);
    const int64_t queries = heads.queries * heads.dim, kept_width = 2 * heads.keys * heads.dim;
    by_rows(step.seen.rows, 2 * heads.width(), [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++) {
        float* row = joined_.data() + r * heads.width();
        rotate_row(row, heads, norm, step.rotation, step.seen.positions[r]);
        keep(row + queries, kept + step.slots[r] * kept_width, kept_width);
      }
    });
    SeenRows seen = step.seen;
    seen.window = layer.window;
    const KvLayer<Kept> kv{kept, heads.keys, heads.dim, shape.block_size};
    attend_rows(joined_.data(), heads.width(), heads.queries, kv, seen, shape.scale, parts_,
                attended_.data());
  }

  void activate(int64_t inner, int64_t rows) {
    by_rows(rows, 4 * inner, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; r++) {
        const float* gate = gate_up_.data() + r * 2 * inner;
        silu_mul(gate, gate + inner, inner, inner_.data() + r * inner);
      }
    });
  }

  void add_delta(const Shape& shape, const Step& step) {
    const int64_t width = shape.hidden;
    by_rows(step.seen.rows, width, [&](int64_t from, int64_t to) {
      add(step.residual + from * width, delta_.data() + from * width, (to - from) * width);
    });
  }

  std::vector<float> normed_, joined_, attended_, delta_, gate_up_, inner_;
  RowBuffer rounded_;
  PartBuffer parts_;
};

// Rows are checked against the first layer's cache; all layers' are of one size.
void check_rows(const Step& step, const Shape& shape, int64_t positions, int64_t sequences,
                int64_t num_slots) {
  const SeenRows& seen = step.seen;
  for (int64_t r = 0; r < seen.rows; r++) {
    const int64_t position = seen.positions[r];
    STD_TORCH_CHECK(0 <= position && position < positions, "a position is too large");
    STD_TORCH_CHECK(0 <= step.slots[r] && step.slots[r] < num_slots, "a slot is not in the cache");
    STD_TORCH_CHECK(0 <= seen.sequences[r] && seen.sequences[r] < sequences,
                    "a row's sequence has no table");
    check_table(seen.table(r), seen.table_width, 0, position, shape.block_size, num_slots);
  }
}

void llama_layers(const Tensor& residual, const Tensor& rotation, const Tensor& positions,
                  const Tensor& slots, const Tensor& tables, const Tensor& rows,
                  int64_t block_size, const Tensor& layers, int64_t num_layers, int64_t num_heads,
                  int64_t num_kv_heads, int64_t head_dim, int64_t num_slots, ScalarType kept,
                  double eps, double head_eps, double scale, bool are_many,
                  bool has_tiles) {
  STD_TORCH_CHECK(layers.dim() == 2 && layers.size(1) == kEntryNumbers &&
                      0 <= num_layers && num_layers <= layers.size(0),
                  "the table of layers has ", kEntryNumbers, " numbers for each");
  STD_TORCH_CHECK(residual.dim() == 2 && tables.dim() == 2 && block_size > 0 &&
                      rotation.dim() == 3 && rotation.size(1) == 2 && rotation.size(2) == head_dim,
                  "residual is [rows, hidden], rotation [positions, 2, dim]");
  STD_TORCH_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0 &&
                      num_heads / num_kv_heads <= kMaxGroup,
                  "query heads are a multiple of key heads, at most ", kMaxGroup, " times as many");
  const int64_t num_rows = residual.size(0);
  STD_TORCH_CHECK(positions.numel() == num_rows && slots.numel() == num_rows &&
                      rows.numel() == num_rows,
                  "each row has a position, a slot and a sequence");
  const int64_t* numbers = data<int64_t>(layers, "layers");
  const LayerEntry* entries = reinterpret_cast<const LayerEntry*>(numbers);
  if (num_layers == 0 || num_rows == 0) return;
  STD_TORCH_CHECK(residual.size(1) == entries[0].qkv.in, "rows have another width than the layers");
  const Shape shape{{num_heads, num_kv_heads, head_dim},
                    residual.size(1),
                    entries[0].gate_up.out / 2,
                    block_size,
                    float(eps),
                    float(head_eps),
                    float(scale),
                    are_many,
                    has_tiles};
  const Step step{data<float>(residual, "residual"),
                  data<float>(rotation, "rotation"),
                  data<int64_t>(slots, "slots"),
                  {data<int64_t>(tables, "tables"), data<int64_t>(rows, "rows"),
                   data<int64_t>(positions, "positions"), num_rows, tables.size(1), 0}};
  check_rows(step, shape, rotation.size(0), tables.size(0), num_slots);
  STD_TORCH_CHECK(!has_tiles || may_use_tiles(), "the system does not give tile registers");
  static thread_local LayerRunner runner;
  with_kept_type(kept, [&](auto* kind) {
    using Kept = std::remove_pointer_t<decltype(kind)>;
    for (int64_t index = 0; index < num_layers; index++)
      runner.run<Kept>(entries[index], shape, step);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tetrad, m) {
  m.def(
      "llama_layers(Tensor(a!) residual, Tensor rotation, Tensor positions, Tensor slots,"
      " Tensor tables, Tensor rows, int block_size, Tensor layers, int num_layers, int num_heads,"
      " int num_kv_heads, int head_dim, int num_slots, ScalarType kept, float eps, float head_eps,"
      " float scale, bool are_many, bool has_tiles) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tetrad, CPU, m) { m.impl("llama_layers", TORCH_BOX(&llama_layers)); }

}  // namespace tetrad
