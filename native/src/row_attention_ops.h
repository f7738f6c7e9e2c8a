// Attention of single tokens, shared by all threads.
#pragma once
#include "row_attention.h"
#include "tensors.h"

namespace tetrad {

constexpr int64_t kMaxGroup = 64;  // query heads that share a key head

// What rows see.
struct SeenRows {
  const int64_t* tables;     // [sequences][table_width]
  const int64_t* sequences;  // [rows]
  const int64_t* positions;  // [rows]
  int64_t rows, table_width, window;

  const int64_t* table(int64_t row) const { return tables + sequences[row] * table_width; }
  int64_t first(int64_t row) const { return first_seen(positions[row], window); }
  int64_t parts(int64_t row) const { return positions[row] / kPart - first(row) / kPart + 1; }
};

// Checks that what a sequence's rows see lies in its table, and its blocks in the cache.
inline void check_table(const int64_t* table, int64_t width, int64_t first, int64_t last,
                 int64_t block_size, int64_t num_slots) {
  STD_TORCH_CHECK(0 <= first && last / block_size < width, "a position lies beyond its table");
  for (int64_t block = first / block_size; block <= last / block_size; block++)
    STD_TORCH_CHECK(0 <= table[block] && table[block] < num_slots / block_size,
                    "a block lies outside the cache");
}

template <typename Use>
inline void with_head_dim(int64_t dim, const Use& use) {
  switch (dim) {
    case 64: return use(std::integral_constant<int, 64>());
    case 96: return use(std::integral_constant<int, 96>());
    case 128: return use(std::integral_constant<int, 128>());
    case 256: return use(std::integral_constant<int, 256>());
    default: STD_TORCH_CHECK(false, "heads of this width are not known here: ", dim);
  }
}

// Memory of parts, kept from call to call.
struct PartBuffer {
  std::vector<int64_t> starts;  // [rows + 1]: where each row's parts begin
  std::vector<float> values, tops, sums;
};

// query: [rows] at a stride, heads side by side; out: [rows, heads * dim].
template <typename Kept>
inline void attend_rows(const float* query, int64_t query_stride, int64_t heads,
                        const KvLayer<Kept>& kv, const SeenRows& seen, float scale,
                        PartBuffer& buffer, float* out) {
  const int64_t group = heads / kv.heads, dim = kv.dim;
  std::vector<int64_t>& starts = buffer.starts;
  starts.assign(seen.rows + 1, 0);
  for (int64_t r = 0; r < seen.rows; r++) starts[r + 1] = starts[r] + seen.parts(r);
  const int64_t parts = starts[seen.rows];
  float* values = grown(buffer.values, parts * heads * dim);
  float* tops = grown(buffer.tops, parts * heads);
  float* sums = grown(buffer.sums, parts * heads);
  with_head_dim(dim, [&](auto width) {
    torch::stable::parallel_for(0, parts * kv.heads, 1, [&](int64_t from, int64_t to) {
      PartSums of_heads[kMaxGroup];
      int64_t row =
          std::upper_bound(starts.begin(), starts.end(), from / kv.heads) - starts.begin() - 1;
      for (int64_t task = from; task < to; task++) {
        const int64_t part = task / kv.heads, head = task % kv.heads;
        while (part >= starts[row + 1]) row++;
        const int64_t first = seen.first(row);
        const int64_t begin = (first / kPart + part - starts[row]) * kPart;
        for (int64_t g = 0; g < group; g++) {
          const int64_t at = part * heads + head * group + g;
          of_heads[g] = {values + at * dim, tops + at, sums + at};
        }
        attend_part<width>(query + row * query_stride + head * group * dim, group, kv, head,
                           seen.table(row), std::max(begin, first),
                           std::min(begin + kPart, seen.positions[row] + 1), scale, of_heads);
      }
    });
  });
  by_rows(seen.rows, heads * dim * (parts / std::max<int64_t>(1, seen.rows) + 1),
          [&](int64_t from, int64_t to) {
            for (int64_t r = from; r < to; r++)
              for (int64_t h = 0; h < heads; h++) {
                const int64_t at = starts[r] * heads + h;
                join_parts(values + at * dim, heads * dim, tops + at, sums + at, heads,
                           starts[r + 1] - starts[r], dim, out + (r * heads + h) * dim);
              }
          });
}

}  // namespace tetrad
