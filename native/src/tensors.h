// From PyTorch's tensors, by its stable ABI, to what the kernels take; and work shared by threads.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <optional>
#include <vector>

#include "numbers.h"

namespace tetrad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_type(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has another type of numbers than it may");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " does not lie row behind row");
}

template <typename T>
constexpr ScalarType kTypeOf = ScalarType::Float;
template <>
constexpr ScalarType kTypeOf<BFloat16> = ScalarType::BFloat16;
template <>
constexpr ScalarType kTypeOf<Half> = ScalarType::Half;
template <>
constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;
template <>
constexpr ScalarType kTypeOf<uint8_t> = ScalarType::Byte;

template <typename T>
inline T* data(const Tensor& tensor, const char* name) {
  check_type(tensor, kTypeOf<T>, name);
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
inline const T* data_or_null(const std::optional<Tensor>& tensor, const char* name) {
  return tensor ? data<T>(*tensor, name) : nullptr;
}

// Calls `use` with a null pointer of the kind of numbers that a type means.
template <typename Use>
inline void with_type(ScalarType type, const char* name, const Use& use) {
  if (type == ScalarType::Float) return use(static_cast<float*>(nullptr));
  if (type == ScalarType::BFloat16) return use(static_cast<BFloat16*>(nullptr));
  STD_TORCH_CHECK(false, name, " must be float32 or bfloat16");
}

// The same of what keys and values may be kept as.
template <typename Use>
inline void with_kept_type(ScalarType type, const Use& use) {
  if (type == ScalarType::Float) return use(static_cast<float*>(nullptr));
  if (type == ScalarType::BFloat16) return use(static_cast<BFloat16*>(nullptr));
  if (type == ScalarType::Half) return use(static_cast<Half*>(nullptr));
  STD_TORCH_CHECK(false, "keys and values must be kept as float32, bfloat16 or float16");
}

// Numbers that a thread may share out before it pays to wake another.
constexpr int64_t kNumbersOfTask = 16384;

// Shares rows out among threads, several at a time; row_numbers: how many numbers each has.
template <typename Use>
inline void by_rows(int64_t rows, int64_t row_numbers, const Use& use) {
  const int64_t at_once = std::max<int64_t>(1, kNumbersOfTask / std::max<int64_t>(1, row_numbers));
  if (rows <= at_once) return use(int64_t(0), rows);
  torch::stable::parallel_for(0, rows, at_once, use);
}

// Shares out tasks of uneven length: a thread that is done takes the next.
template <typename Use>
inline void by_tasks(int64_t tasks, const Use& use) {
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) use(task);
  });
}

}  // namespace tetrad
