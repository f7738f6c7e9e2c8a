// An int4 weight out of tensors, and rows times it with all threads.
#pragma once
#include "int4.h"
#include "int4_panels.h"
#include "int4_tiles.h"
#include "rounded_rows.h"
#include "tensors.h"

namespace tetrad {

inline Int4Weight int4_weight(const Tensor& packed, const Tensor& scales, int64_t planes,
                              int64_t out, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(planes == 1 || planes == 2, "an int4 weight has one plane or two");
  STD_TORCH_CHECK(packed.dim() == 2 && scales.dim() == 3 && scales.size(2) == 2,
                  "packed is [padded out, in / 2 * planes], scales_and_minima [groups, padded out, 2]");
  Int4Weight w{};
  w.planes = planes;
  w.padded_out = packed.size(0);
  w.in = packed.size(1) * 2 / planes;
  w.out = out;
  w.groups = scales.size(0) / planes;
  w.group_size = w.groups > 0 ? w.in / w.groups : 0;
  STD_TORCH_CHECK(w.padded_out % kBlock == 0 && scales.size(1) == w.padded_out,
                  "outputs are packed in blocks of 64");
  STD_TORCH_CHECK(0 < out && out <= w.padded_out, "there are fewer outputs than are asked for");
  STD_TORCH_CHECK(w.groups * planes == scales.size(0) && w.groups * w.group_size == w.in &&
                      w.group_size > 0 && w.group_size % (2 * kLanes) == 0,
                  "groups are of one size, a multiple of 32");
  w.packed = data<uint8_t>(packed, "packed");
  w.scales = data<BFloat16>(scales, "scales_and_minima") + (planes - 1) * w.groups * w.padded_out * 2;
  w.bias = data_or_null<float>(bias, "bias");
  STD_TORCH_CHECK(!bias || bias->numel() == out, "the bias has one number for each output");
  return w;
}

// Rows of a weight as its products take them.
template <typename In>
inline RoundedRows round_rows(const Int4Weight& w, const In* x, int64_t rows, RowBuffer& buffer) {
  const Groups groups{w.in, w.group_size, w.permutation};
  return buffer.round(groups, x, rows);
}

// out: [rows, w.out]
template <typename Out>
inline void multiply(const Int4Weight& w, const RoundedRows& x, int64_t rows, Out* out) {
  torch::stable::parallel_for(0, halves_of(w), 1, [&](int64_t from, int64_t to) {
    multiply_range(w, from, to, x, rows, out, w.out);
  });
}

// What is unpacked of a weight, of a thread.
struct PanelBuffer {
  std::vector<uint32_t> panel;
  TiledBuffer tiled;
};

// Some rows times one block, which is unpacked for them.
template <typename Out>
inline void multiply_block(const Int4Weight& w, int64_t block, const BFloat16* x, int64_t rows,
                           bool has_tiles, PanelBuffer& buffer, Out* out) {
  uint32_t* panel = grown(buffer.panel, w.in / 2 * kBlock);
  unpack_panel(w, block, panel);
  const int64_t place = block * kBlock;
  if (has_tiles)
    multiply_panel_by_tiles(w, panel, x, rows, place, buffer.tiled, out);
  else
    multiply_panel_rows(w, panel, x, rows, place, out);
}

// The same of many rows, by blocks that are unpacked once for as many rows as threads leave.
template <typename Out>
inline void multiply_many(const Int4Weight& w, const BFloat16* x, int64_t rows, bool has_tiles,
                          Out* out) {
  constexpr int64_t kLeastRows = 96;  // of a task: unpacking costs what some twenty rows do
  const int64_t blocks = w.padded_out / kBlock;
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t shares = std::max<int64_t>(
      1, std::min((wanted + blocks - 1) / blocks, rows / kLeastRows));
  const int64_t of_share = ((rows + shares - 1) / shares + kTiledRows - 1) / kTiledRows * kTiledRows;
  by_tasks(blocks * shares, [&](int64_t task) {
    const int64_t from = task % shares * of_share, to = std::min(rows, from + of_share);
    static thread_local PanelBuffer buffer;
    if (from < to)
      multiply_block(w, task / shares, x + from * w.in, to - from, has_tiles, buffer,
                     out + from * w.out);
  });
}

}  // namespace tetrad
