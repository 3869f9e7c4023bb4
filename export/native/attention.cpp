#include "attention.h"

#include <stdexcept>

#include "scratch.h"

namespace sparseticket {
namespace {

constexpr int64_t kLargest = 65536;

}  // namespace

Attention::Attention(const OrtApi& api, const Operator& op, const OrtKernelInfo* info) : Node(api, op) {
  const std::vector<int64_t> split = integers(api, info, "split");
  if (split.size() != 4 || split[2] < 1 || split[2] > kLargest || split[3] < 16 || split[3] > kLargest || split[3] % 16)
    throw std::invalid_argument("split must be [0, 0, heads, size of a head, a multiple of 16]");
  heads_ = split[2];
  size_ = split[3];
  if (heads_ * size_ > kLargest) throw std::invalid_argument("split must be at most 65536 floats a row");
  must(api.KernelInfoGetAttribute_float(info, "scale", &scale_));
}

void Attention::compute(OrtKernelContext* context) const {
  const Tensor q = input(context, 0), k = input(context, 1), v = input(context, 2), mask = input(context, 3);
  const int64_t step = heads_ * size_;
  if (q.shape.size() != 3 || k.shape.size() != 3 || k.shape != v.shape || q.shape[0] != k.shape[0] ||
      q.shape[2] != step || k.shape[2] != step)
    throw std::invalid_argument("q, k and v must be [n, rows, " + std::to_string(step) + "]");
  const int64_t texts = q.shape[0], rows = q.shape[1], keys = k.shape[1];
  if (mask.shape != std::vector<int64_t>{texts, 1, rows, keys})
    throw std::invalid_argument("mask must be [n, 1, rows, keys]");
  if (rows > kLargest || keys > kLargest || (keys == 0 && texts * rows > 0))
    throw std::invalid_argument("there must be 1 to 65536 keys");
  float* y = output(context, q.shape);
  if (texts * rows == 0) return;
  const auto of = [](const Tensor& tensor) { return static_cast<const float*>(tensor.data); };
  parallel(context, texts * heads_, [&](int64_t task) {
    const int64_t text = task / heads_, head = task % heads_;
    const int64_t at = text * rows * step + head * size_, at_key = text * keys * step + head * size_;
    const int64_t width = (keys + 15) / 16 * 16;  // the turned keys, and four rows of scores
    float* memory = static_cast<float*>(scratch<Attention>((size_ + 4) * width * sizeof(float)));
    kernels_.attend(of(q) + at, of(k) + at_key, of(v) + at_key, of(mask) + text * rows * keys, static_cast<int>(rows),
                    static_cast<int>(keys), static_cast<int>(size_), static_cast<int>(step), scale_, memory, y + at);
  });
}

}  // namespace sparseticket
