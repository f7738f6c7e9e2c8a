// Many rows times an unpacked block of an int4 weight, by tile registers.
//
// The panel of `int4_panels.h` is laid out as they read it. Sums run over the inputs in their order,
// in a row's own tile row, so its bits depend on no other row.
#pragma once
#include <vector>

#include "int4_panels.h"
#include "tiles.h"

namespace tetrad {

constexpr int64_t kTiledRows = 2 * kTileRegisterRows;  // at a time
constexpr int64_t kTiledOutputs = 2 * kLanes;
constexpr int64_t kTiledInputs = 32;  // of a product of tiles: 16 pairs

// A thread's memory for rows that fill no tile, and for sums.
struct TiledBuffer {
  std::vector<BFloat16> rows;  // [32, in]
  alignas(64) float sums[kTiledRows][kTiledOutputs];
};

// Has tiles configured as long as it lives, whatever is thrown meanwhile.
class ConfiguredTiles {
 public:
  ConfiguredTiles() { configure_tiles(); }
  ~ConfiguredTiles() { release_tiles(); }
  ConfiguredTiles(const ConfiguredTiles&) = delete;
  ConfiguredTiles& operator=(const ConfiguredTiles&) = delete;
};

// Rows that fill no tile, with zeros below them.
inline const BFloat16* filled_up(const Int4Weight& w, const BFloat16* x, int64_t rows,
                                 TiledBuffer& buffer) {
  BFloat16* filled = grown(buffer.rows, kTiledRows * w.in);
  std::memcpy(filled, x, rows * w.in * sizeof(BFloat16));
  std::memset(filled + rows * w.in, 0, (kTiledRows - rows) * w.in * sizeof(BFloat16));
  return filled;
}

// sums = x [32, in] times half of a panel, from output `first` of the block on.
inline void multiply_tiles(const Int4Weight& w, const uint32_t* panel, const BFloat16* x,
                           int64_t first, TiledBuffer& buffer) {
  const int64_t row_bytes = w.in * int64_t(sizeof(BFloat16));
  const int64_t pair_bytes = kBlock * int64_t(sizeof(uint32_t));
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t i = 0; i < w.in; i += kTiledInputs) {
    const uint32_t* weights = panel + i / 2 * kBlock + first;
    tile_load<4>(x + i, row_bytes);
    tile_load<6>(weights, pair_bytes);
    tile_load<7>(weights + kLanes, pair_bytes);
    tile_load<5>(x + kTileRegisterRows * w.in + i, row_bytes);
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }
  constexpr int64_t kStride = kTiledOutputs * sizeof(float);
  tile_store<0>(buffer.sums[0], kStride);
  tile_store<1>(buffer.sums[0] + kLanes, kStride);
  tile_store<2>(buffer.sums[kTileRegisterRows], kStride);
  tile_store<3>(buffer.sums[kTileRegisterRows] + kLanes, kStride);
}

// Up to 32 rows times a panel, to outputs from `place` on; x: [32, in]; tiles are configured.
template <typename Out>
inline void multiply_panel_tiles(const Int4Weight& w, const uint32_t* panel, const BFloat16* x,
                                 int64_t rows, int64_t place, TiledBuffer& buffer, Out* out) {
  for (int64_t half = 0; half < kBlock; half += kTiledOutputs) {
    multiply_tiles(w, panel, x, half, buffer);
    for (int64_t q = 0; q < kTiledOutputs; q += kLanes) {
      const int64_t first = place + half + q;
      const __mmask16 lanes = first_lanes(w.out - first);
      const __m512 bias = w.bias ? load(w.bias + first, lanes) : _mm512_setzero_ps();
      for (int64_t r = 0; r < rows; r++)
        store(out + r * w.out + first, _mm512_add_ps(load(buffer.sums[r] + q), bias), lanes);
    }
  }
}

// All rows [rows, in] times a panel.
template <typename Out>
inline void multiply_panel_by_tiles(const Int4Weight& w, const uint32_t* panel, const BFloat16* x,
                                    int64_t rows, int64_t place, TiledBuffer& buffer, Out* out) {
  const int64_t whole = rows / kTiledRows * kTiledRows;
  const BFloat16* rest =
      whole < rows ? filled_up(w, x + whole * w.in, rows - whole, buffer) : nullptr;
  const ConfiguredTiles configured;
  for (int64_t r = 0; r < whole; r += kTiledRows)
    multiply_panel_tiles(w, panel, x + r * w.in, kTiledRows, place, buffer, out + r * w.out);
  if (rest)
    multiply_panel_tiles(w, panel, rest, rows - whole, place, buffer, out + whole * w.out);
}

}  // namespace tetrad
