// Tile registers (Intel AMX) of 16 rows of 64 bytes, or the same in memory where tests ask for it.
//
// Tiles 0 to 3 hold sums of float32, 4 and 5 rows of activations, 6 and 7 weights.
#pragma once
#include "numbers.h"

#ifdef TETRAD_EMULATED_TILES
#include <vector>
#else
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tetrad {

constexpr int64_t kTileRegisterRows = 16, kTileRegisterBytes = 64;

#ifdef TETRAD_EMULATED_TILES

struct alignas(kTileRegisterBytes) EmulatedTile {
  uint8_t bytes[kTileRegisterRows][kTileRegisterBytes];
};
inline thread_local EmulatedTile emulated_tiles[8];

inline bool may_use_tiles() { return true; }
inline void configure_tiles() {}
inline void release_tiles() {}

template <int kTo>
inline void tile_zero() {
  std::memset(&emulated_tiles[kTo], 0, sizeof(EmulatedTile));
}
template <int kTo>
inline void tile_load(const void* from, int64_t stride) {
  for (int64_t r = 0; r < kTileRegisterRows; r++)
    std::memcpy(emulated_tiles[kTo].bytes[r], static_cast<const uint8_t*>(from) + r * stride,
                kTileRegisterBytes);
}
template <int kFrom>
inline void tile_store(void* to, int64_t stride) {
  for (int64_t r = 0; r < kTileRegisterRows; r++)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, emulated_tiles[kFrom].bytes[r],
                kTileRegisterBytes);
}
// Sums of 16 x 16 += rows of 16 pairs of bfloat16 times 16 rows of pairs.
template <int kSums, int kRows, int kWeights>
inline void tile_multiply() {
  for (int64_t r = 0; r < kTileRegisterRows; r++) {
    float sums[16];
    uint16_t row[32], weights[32];
    std::memcpy(sums, emulated_tiles[kSums].bytes[r], sizeof sums);
    std::memcpy(row, emulated_tiles[kRows].bytes[r], sizeof row);
    for (int64_t pair = 0; pair < 16; pair++) {
      std::memcpy(weights, emulated_tiles[kWeights].bytes[pair], sizeof weights);
      for (int64_t n = 0; n < 16; n++)
        for (int64_t i = 0; i < 2; i++) {
          const uint32_t x = uint32_t(row[2 * pair + i]) << 16;
          const uint32_t y = uint32_t(weights[2 * n + i]) << 16;
          float left, right;
          std::memcpy(&left, &x, sizeof left);
          std::memcpy(&right, &y, sizeof right);
          sums[n] += left * right;
        }
    }
    std::memcpy(emulated_tiles[kSums].bytes[r], sums, sizeof sums);
  }
}

#else

// Linux gives a process the tiles' state when it asks for it, once for all its threads.
inline bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  static const bool is_allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return is_allowed;
}

// What the instruction that configures tiles reads: eight of them, whole.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline const TileConfiguration tile_configuration;

// Each thread configures its own tiles, and lets them go when it has done with them. The compiler's
// name of this instruction tells it that eight bytes are read, where all of them are.
inline void configure_tiles() { __asm__ volatile("ldtilecfg %0" ::"m"(tile_configuration)); }
inline void release_tiles() { _tile_release(); }

// The compiler's names of these instructions take numbers of tiles as they are written, and do not
// tell it that memory is read or written.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

template <int kTo>
void tile_zero();
template <int kTo>
void tile_load(const void* from, int64_t stride);
template <int kFrom>
void tile_store(void* to, int64_t stride);
template <int kSums, int kRows, int kWeights>
void tile_multiply();

#define TETRAD_SUMS_TILE(n)                                \
  template <>                                              \
  inline void tile_zero<n>() {                             \
    _tile_zero(n);                                         \
  }                                                        \
  template <>                                              \
  inline void tile_store<n>(void* to, int64_t stride) {    \
    settle_memory();                                       \
    _tile_stored(n, to, stride);                           \
    settle_memory();                                       \
  }
#define TETRAD_INPUT_TILE(n)                                    \
  template <>                                                   \
  inline void tile_load<n>(const void* from, int64_t stride) {  \
    settle_memory();                                            \
    _tile_loadd(n, from, stride);                               \
  }
#define TETRAD_TILE_PRODUCT(sums, rows, weights)    \
  template <>                                       \
  inline void tile_multiply<sums, rows, weights>() { \
    _tile_dpbf16ps(sums, rows, weights);            \
  }
TETRAD_SUMS_TILE(0)
TETRAD_SUMS_TILE(1)
TETRAD_SUMS_TILE(2)
TETRAD_SUMS_TILE(3)
TETRAD_INPUT_TILE(4)
TETRAD_INPUT_TILE(5)
TETRAD_INPUT_TILE(6)
TETRAD_INPUT_TILE(7)
TETRAD_TILE_PRODUCT(0, 4, 6)
TETRAD_TILE_PRODUCT(1, 4, 7)
TETRAD_TILE_PRODUCT(2, 5, 6)
TETRAD_TILE_PRODUCT(3, 5, 7)
#undef TETRAD_SUMS_TILE
#undef TETRAD_INPUT_TILE
#undef TETRAD_TILE_PRODUCT

#endif

}  // namespace tetrad
