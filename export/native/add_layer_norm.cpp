#include "add_layer_norm.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sparseticket {
namespace {

constexpr int64_t kRows = 16;  // that are one task
constexpr int64_t kLongest = 1 << 20;

const float* row(const Tensor& tensor, int64_t size, int64_t i) {
  return static_cast<const float*>(tensor.data) + i * size;
}

}  // namespace

AddLayerNorm::AddLayerNorm(const OrtApi& api, const Operator& op, const OrtKernelInfo* info) : Node(api, op) {
  must(api.KernelInfoGetAttribute_float(info, "epsilon", &epsilon_));
  if (!(epsilon_ >= 0)) throw std::invalid_argument("epsilon must be 0 or more");
}

void AddLayerNorm::compute(OrtKernelContext* context) const {
  const Tensor a = input(context, 0), b = input(context, 1), scale = input(context, 2), bias = input(context, 3);
  if (a.shape.empty() || a.shape != b.shape) throw std::invalid_argument("a and b must have one shape");
  const int64_t size = a.shape.back();
  if (scale.shape != std::vector<int64_t>{size} || bias.shape != std::vector<int64_t>{size})
    throw std::invalid_argument("scale and bias must be as long as the last dimension of a");
  if (size > kLongest) throw std::invalid_argument("the last dimension of a is longer than 2^20");
  float* y = output(context, a.shape);
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.shape.size(); ++i) rows *= a.shape[i];
  if (rows * size == 0) return;
  parallel(context, (rows + kRows - 1) / kRows, [&](int64_t task) {
    const int64_t first = task * kRows, count = std::min(kRows, rows - first);
    kernels_.add_norm(row(a, size, first), row(b, size, first), row(scale, size, 0), row(bias, size, 0),
                      static_cast<int>(count), static_cast<int>(size), epsilon_, y + first * size);
  });
}

}  // namespace sparseticket
