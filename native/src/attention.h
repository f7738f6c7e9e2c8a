// Attention over the paged KV cache: what both ways of it share.
#pragma once
#include "numbers.h"

namespace tetrad {

// Where the cache keeps a layer's keys and values, [slots][2][heads][dim].
template <typename Kept>
struct KvLayer {
  const Kept* data;
  int64_t heads, dim, block_size;

  int64_t slot_width() const { return 2 * heads * dim; }
  // A token's key of a head; its value lies heads * dim further on.
  const Kept* key(const int64_t* table, int64_t position, int64_t head) const {
    const int64_t slot = table[position / block_size] * block_size + position % block_size;
    return data + slot * slot_width() + head * dim;
  }
  int64_t to_value() const { return heads * dim; }
};

// The first position that a token sees; window: how many it sees at most, 0: all.
inline int64_t first_seen(int64_t position, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, position + 1 - window) : 0;
}

}  // namespace tetrad
