#include "linear.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "scratch.h"

namespace sparseticket {
namespace {

constexpr int64_t kFew = 2;               // rows that need no panel, where outputs come in blocks of 4 or 8
constexpr int64_t kAtOnce = 16 * kPanel;  // rows that are panels at once: those of 3072 inputs take 12 MB
constexpr int kSlice = 1024;              // inputs that one task turns
constexpr int64_t kCounted = 64 * 1024;  // values that one task takes the extremes of

}  // namespace

struct Linear::Call {
  OrtKernelContext* context;
  const float* x;
  float* y;
  int64_t rows, panels;
  int inputs, outputs;

  const float* x_of(int64_t panel) const { return x + panel * kPanel * inputs; }
  float* y_of(int64_t panel) const { return y + panel * kPanel * outputs; }
  int rows_of(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kPanel, rows - panel * kPanel)); }
  int width_of(int64_t panel, int lanes) const { return (rows_of(panel) + lanes - 1) / lanes * lanes; }
};

void Linear::compute(OrtKernelContext* context) const {
  Tensor x = input(context);
  if (x.shape.empty() || x.shape.back() != weight_.inputs)
    throw std::invalid_argument("the last dimension of x must be " + std::to_string(weight_.inputs));
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= x.shape[i];
  x.shape.back() = weight_.outputs;
  float* y = output(context, x.shape);
  if (rows == 0) return;
  const float* data = static_cast<const float*>(x.data);
  const Quantized by = op_.is_int8 ? quantized(context, data, rows * weight_.inputs) : Quantized{};
  for (int64_t first = 0; first < rows; first += kAtOnce) {
    const int64_t count = std::min(kAtOnce, rows - first);
    const Call call{context, data + first * weight_.inputs, y + first * weight_.outputs, count,
                    (count + kPanel - 1) / kPanel, weight_.inputs, weight_.outputs};
    op_.is_int8 ? run_int8(call, by) : run(call);
  }
}

// Calls work(panel, first input, last input) for all that is to be turned.
template <class Work>
void Linear::turned(const Call& call, Work work) const {
  const int64_t slices = (weight_.inputs + kSlice - 1) / kSlice;
  parallel(call.context, call.panels * slices, [&](int64_t task) {
    const int first = static_cast<int>(task % slices) * kSlice;
    work(task / slices, first, std::min(first + kSlice, weight_.inputs));
  });
}

// Calls work(panel, chunk) for all that is to be multiplied.
template <class Work>
void Linear::multiplied(const Call& call, Work work) const {
  const int64_t chunks = weight_.chunk_count();
  parallel(call.context, call.panels * chunks,
           [&](int64_t task) { work(task / chunks, static_cast<int>(task % chunks)); });
}

void Linear::run(const Call& call) const {
  if (call.rows <= kFew && weight_.block >= 4) return run_rows(call);
  // 4 rows of 768 x 768 at 70 % zeros, 4x1: 61 us in vectors of 16, 44 us in vectors of 8
  const Kernels& kernels = kernels_.narrow && call.rows <= kernels_.narrow->lanes ? *kernels_.narrow : kernels_;
  const size_t size = static_cast<size_t>(weight_.inputs) * kPanel;
  float* panels = static_cast<float*>(scratch<Linear>(call.panels * size * sizeof(float)));
  turned(call, [&](int64_t panel, int first, int last) {
    kernels.turn(call.x_of(panel), call.rows_of(panel), weight_.inputs, first, last,
                 call.width_of(panel, kernels.lanes), panels + panel * size);
  });
  multiplied(call, [&](int64_t panel, int chunk) {
    kernels.multiply(weight_, chunk, panels + panel * size, call.width_of(panel, kernels.lanes),
                     call.rows_of(panel), op_.activation, call.y_of(panel));
  });
}

void Linear::run_rows(const Call& call) const {
  parallel(call.context, weight_.chunk_count(), [&](int64_t chunk) {
    kernels_.multiply_rows(weight_, static_cast<int>(chunk), call.x, static_cast<int>(call.rows), op_.activation,
                           call.y);
  });
}

Quantized Linear::quantized(OrtKernelContext* context, const float* x, int64_t count) const {
  const int64_t parts = (count + kCounted - 1) / kCounted;
  std::vector<float> least(parts, 0), greatest(parts, 0);
  parallel(context, parts, [&](int64_t part) {
    const int64_t first = part * kCounted;
    kernels_.extremes(x + first, std::min(kCounted, count - first), &least[part], &greatest[part]);
  });
  const float low = *std::min_element(least.begin(), least.end());
  const float high = *std::max_element(greatest.begin(), greatest.end());
  Quantized result;
  if (low < high) {
    result.scale = (high - low) / 255.f;
    const float zero = std::nearbyintf((0.f - low) / result.scale);
    result.zero = zero > 0.f ? static_cast<int32_t>(std::min(zero, 255.f)) : 0;  // 0 where low is -infinity
  }
  return result;
}

void Linear::run_int8(const Call& call, Quantized by) const {
  const size_t size = static_cast<size_t>(weight_.inputs) * kPanel;
  uint8_t* panels = static_cast<uint8_t*>(scratch<Linear>(call.panels * size));
  turned(call, [&](int64_t panel, int first, int last) {
    kernels_.turn_int8(call.x_of(panel), call.rows_of(panel), weight_.inputs, first, last, by, panels + panel * size);
  });
  multiplied(call, [&](int64_t panel, int chunk) {
    kernels_.multiply_int8(weight_, chunk, panels + panel * size, call.width_of(panel, kernels_.lanes),
                           call.rows_of(panel), by, op_.activation, call.y_of(panel));
  });
}

}  // namespace sparseticket
