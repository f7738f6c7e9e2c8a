// Attention over the paged KV cache, as PyTorch's operations.
#include "attention.h"

#include "piece_attention.h"
#include "row_attention_ops.h"
#include "tensors.h"

namespace tetrad {
namespace {

// Packed keys and values that lie ready at a time; one head of one piece may need more.
constexpr int64_t kPackedBytes = 8 << 20;

void check_query(const Tensor& query, const Tensor& kv_layer) {
  STD_TORCH_CHECK(query.dim() == 3 && kv_layer.dim() == 4 && kv_layer.size(1) == 2,
                  "queries are [rows, heads, dim], keys and values [slots, 2, heads, dim]");
  const int64_t heads = query.size(1), shared = kv_layer.size(2);
  STD_TORCH_CHECK(query.size(2) == kv_layer.size(3), "queries have another width than keys");
  STD_TORCH_CHECK(shared > 0 && heads % shared == 0 && heads / shared <= kMaxGroup,
                  "query heads are a multiple of key heads, at most ", kMaxGroup, " times as many");
}

Tensor attend_rows_of(const Tensor& query, const Tensor& kv_layer, const Tensor& tables,
                      const Tensor& rows, const Tensor& positions, int64_t block_size,
                      double scale, int64_t window) {
  check_query(query, kv_layer);
  const int64_t heads = query.size(1), dim = query.size(2);
  STD_TORCH_CHECK(tables.dim() == 2 && rows.numel() == query.size(0) &&
                      positions.numel() == query.size(0) && block_size > 0,
                  "each row has a sequence and a position");
  const SeenRows seen{data<int64_t>(tables, "tables"), data<int64_t>(rows, "rows"),
                      data<int64_t>(positions, "positions"), query.size(0), tables.size(1), window};
  for (int64_t r = 0; r < seen.rows; r++) {
    STD_TORCH_CHECK(0 <= seen.sequences[r] && seen.sequences[r] < tables.size(0),
                    "a row's sequence has no table");
    STD_TORCH_CHECK(seen.positions[r] >= 0, "positions begin at 0");
    check_table(seen.table(r), seen.table_width, seen.first(r), seen.positions[r], block_size,
                kv_layer.size(0));
  }
  Tensor out = torch::stable::new_empty(query, {seen.rows, heads * dim});
  if (seen.rows == 0) return out;
  static thread_local PartBuffer buffer;
  with_kept_type(kv_layer.scalar_type(), [&](auto* kind) {
    using Kept = std::remove_pointer_t<decltype(kind)>;
    const KvLayer<Kept> kv{data<Kept>(kv_layer, "kv_layer"), kv_layer.size(2), dim, block_size};
    attend_rows(data<float>(query, "query"), heads * dim, heads, kv, seen, float(scale), buffer,
                data<float>(out, "out"));
  });
  return out;
}

// A stretch of a prompt.
struct Piece {
  int64_t first_row, rows, start;
  const int64_t* table;
};

// One piece's one key head, whose keys and values are packed at an offset.
struct PackedHead {
  const Piece* piece;
  int64_t head, first_block, blocks, offset;
};

struct PieceTask {
  const PackedHead* head;
  int64_t first_row, rows, query_head;
};

std::vector<Piece> read_pieces(const Tensor& pieces, const Tensor& tables, int64_t rows,
                               int64_t block_size, int64_t window, int64_t num_slots) {
  STD_TORCH_CHECK(pieces.dim() == 2 && pieces.size(1) == 3 && tables.dim() == 2 && block_size > 0,
                  "pieces are [pieces, 3]: rows, position, sequence");
  const int64_t* told = data<int64_t>(pieces, "pieces");
  const int64_t* table = data<int64_t>(tables, "tables");
  std::vector<Piece> read;
  int64_t row = 0;
  for (int64_t i = 0; i < pieces.size(0); i++, told += 3) {
    STD_TORCH_CHECK(0 < told[0] && told[0] <= rows - row && 0 <= told[1] &&
                        told[1] < tables.size(1) * block_size && 0 <= told[2] && told[2] < tables.size(0),
                    "a piece has rows, a position and a sequence");
    const Piece piece{row, told[0], told[1], table + told[2] * tables.size(1)};
    check_table(piece.table, tables.size(1), first_seen(piece.start, window),
                piece.start + piece.rows - 1, block_size, num_slots);
    read.push_back(piece);
    row += piece.rows;
  }
  STD_TORCH_CHECK(row == rows, "pieces have another number of rows than there are queries");
  return read;
}

template <typename Kept>
class PieceAttention {
 public:
  PieceAttention(const KvLayer<Kept>& kv, int64_t group, float scale, int64_t window)
      : kv_(kv), group_(group), scale_(scale), window_(window) {}

  template <typename Out>
  void run(const std::vector<Piece>& pieces, const float* query, Out* out) {
    int64_t needed = 0;
    for (const Piece& piece : pieces) {
      for (int64_t head = 0; head < kv_.heads; head++) {
        const int64_t first = first_seen(piece.start, window_) / kKeys;
        const int64_t blocks = (piece.start + piece.rows - 1) / kKeys + 1 - first;
        const int64_t numbers = packed_numbers(blocks, kv_.dim);
        if (needed && (needed + numbers) * 2 * int64_t(sizeof(uint32_t)) > kPackedBytes) {
          attend(query, out, needed);
          needed = 0;
        }
        heads_.push_back({&piece, head, first, blocks, needed});
        needed += numbers;
      }
    }
    if (needed) attend(query, out, needed);
  }

 private:
  // Packs the heads that were chosen, attends with their rows, and forgets them.
  template <typename Out>
  void attend(const float* query, Out* out, int64_t numbers) {
    static thread_local std::vector<uint32_t> keys, values;
    pack(grown(keys, numbers), grown(values, numbers));
    list_tasks();
    const int64_t stride = group_ * kv_.heads * kv_.dim;
    const uint32_t *packed_keys = keys.data(), *packed_values = values.data();
    by_tasks(int64_t(tasks_.size()), [&](int64_t index) {
      const PieceTask& task = tasks_[index];
      const Piece& piece = *task.head->piece;
      const int64_t at = (piece.first_row + task.first_row) * stride + task.query_head * kv_.dim;
      const QueryRows those{query + at,
                      stride,
                      task.rows,
                      piece.start + task.first_row,
                      kv_.dim,
                      window_,
                      scale_,
                      packed_keys + task.head->offset,
                      packed_values + task.head->offset,
                      task.head->first_block};
      QueryBuffer buffer;
      attend_with(those, buffer, out + at, stride);
    });
    heads_.clear();
  }

  void pack(uint32_t* keys, uint32_t* values) {
    std::vector<std::pair<const PackedHead*, int64_t>> blocks;
    for (const PackedHead& head : heads_)
      for (int64_t block = 0; block < head.blocks; block++) blocks.emplace_back(&head, block);
    torch::stable::parallel_for(0, int64_t(blocks.size()), 4, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; i++) {
        const auto& [head, block] = blocks[i];
        const Piece& piece = *head->piece;
        const Kept* kept[kKeys];
        for (int64_t t = 0; t < kKeys; t++) {
          const int64_t position = (head->first_block + block) * kKeys + t;
          const bool is_seen = first_seen(piece.start, window_) <= position &&
                               position < piece.start + piece.rows;
          kept[t] = is_seen ? kv_.key(piece.table, position, head->head) : nullptr;
        }
        const int64_t at = head->offset + packed_numbers(block, kv_.dim);
        pack_keys(kept, kv_.dim, keys + at);
        pack_values(kept, kv_.to_value(), kv_.dim, values + at);
      }
    });
  }

  // Rows that see the most first, so that none is left to run alone in the end.
  void list_tasks() {
    tasks_.clear();
    for (const PackedHead& head : heads_)
      for (int64_t row = 0; row < head.piece->rows; row += kQueryRows)
        for (int64_t g = 0; g < group_; g++)
          tasks_.push_back(
              {&head, row, std::min(kQueryRows, head.piece->rows - row), head.head * group_ + g});
    std::stable_sort(tasks_.begin(), tasks_.end(), [](const PieceTask& a, const PieceTask& b) {
      return a.head->piece->start + a.first_row > b.head->piece->start + b.first_row;
    });
  }

  const KvLayer<Kept> kv_;
  const int64_t group_;
  const float scale_;
  const int64_t window_;
  std::vector<PackedHead> heads_;
  std::vector<PieceTask> tasks_;
};

Tensor attend_pieces(const Tensor& query, const Tensor& kv_layer, const Tensor& tables,
                     const Tensor& pieces, int64_t block_size, double scale, int64_t window,
                     ScalarType type) {
  check_query(query, kv_layer);
  const int64_t rows = query.size(0), heads = query.size(1), dim = query.size(2);
  STD_TORCH_CHECK(dim % (2 * kLanes) == 0 && dim <= kMaxHeadDim,
                  "heads' width must be a multiple of 32, at most ", kMaxHeadDim);
  const std::vector<Piece> read =
      read_pieces(pieces, tables, rows, block_size, window, kv_layer.size(0));
  Tensor out = torch::stable::new_empty(query, {rows, heads * dim}, type);
  const float* asked = data<float>(query, "query");
  with_kept_type(kv_layer.scalar_type(), [&](auto* kept_kind) {
    using Kept = std::remove_pointer_t<decltype(kept_kind)>;
    const KvLayer<Kept> kv{data<Kept>(kv_layer, "kv_layer"), kv_layer.size(2), dim, block_size};
    PieceAttention<Kept> attention(kv, heads / kv.heads, float(scale), window);
    with_type(type, "what is attended to", [&](auto* kind) {
      attention.run(read, asked, data<std::remove_pointer_t<decltype(kind)>>(out, "out"));
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tetrad, m) {
  m.def(
      "attend_rows(Tensor query, Tensor kv_layer, Tensor tables, Tensor rows, Tensor positions,"
      " int block_size, float scale, int window) -> Tensor");
  m.def(
      "attend_pieces(Tensor query, Tensor kv_layer, Tensor tables, Tensor pieces, int block_size,"
      " float scale, int window, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tetrad, CPU, m) {
  m.impl("attend_rows", TORCH_BOX(&attend_rows_of));
  m.impl("attend_pieces", TORCH_BOX(&attend_pieces));
}

}  // namespace tetrad
