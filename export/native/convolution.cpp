#include "convolution.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "scratch.h"

namespace sparseticket {
namespace {

constexpr int64_t kFewPanels = 16;  // below, chunks are tasks of their own, so that all threads have work
constexpr int64_t kLargest = 1 << 20;

struct Image {};
struct Panel {};
struct Sums {};

}  // namespace

struct Convolution::Geometry {
  int64_t channels, height, width;    // of x
  int64_t out_height, out_width;      // of y
  int64_t line, lines, plane;         // of one of the images that the stride cuts it in: floats, lines, both
  int64_t phases[2];                  // such images that the kernel sees
  int64_t positions, panels;
};

Convolution::Convolution(const OrtApi& api, const Operator& op, const OrtKernelInfo* info) : SparseNode(api, op, info) {
  const std::vector<int64_t> kernel = integers(api, info, "kernel_shape"), strides = integers(api, info, "strides"),
                             pads = integers(api, info, "pads");
  const auto within = [](const std::vector<int64_t>& values, int64_t least, int64_t most) {
    return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v >= least && v <= most; });
  };
  if (kernel.size() != 2 || !within(kernel, 1, 255))
    throw std::invalid_argument("kernel_shape must be two of 1 to 255");
  if (strides.size() != 2 || !within(strides, 1, 255)) throw std::invalid_argument("strides must be two of 1 to 255");
  if (pads.size() != 4 || !within(pads, 0, 255)) throw std::invalid_argument("pads must be four of 0 to 255");
  if (weight_.inputs % (kernel[0] * kernel[1])) throw std::invalid_argument("kernel_shape must divide the inputs");
  rows_ = static_cast<int>(kernel[0]);
  columns_ = static_cast<int>(kernel[1]);
  std::copy(strides.begin(), strides.end(), stride_);
  std::copy(pads.begin(), pads.end(), pads_);
}

void Convolution::compute(OrtKernelContext* context) const {
  const Tensor x = input(context);
  Geometry g;
  g.channels = weight_.inputs / (rows_ * columns_);
  if (x.shape.size() != 4 || x.shape[1] != g.channels)
    throw std::invalid_argument("x must be [n, " + std::to_string(g.channels) + ", height, width]");
  g.height = x.shape[2];
  g.width = x.shape[3];
  const int64_t padded_height = g.height + pads_[0] + pads_[2], padded_width = g.width + pads_[1] + pads_[3];
  if (padded_height < rows_ || padded_width < columns_ || padded_height > kLargest || padded_width > kLargest)
    throw std::invalid_argument("x is smaller than the kernel, or larger than 2^20");
  g.out_height = (padded_height - rows_) / stride_[0] + 1;
  g.out_width = (padded_width - columns_) / stride_[1] + 1;
  g.lines = (padded_height + stride_[0] - 1) / stride_[0];
  g.line = (padded_width + stride_[1] - 1) / stride_[1];
  g.plane = g.lines * g.line;
  g.phases[0] = std::min(rows_, stride_[0]);
  g.phases[1] = std::min(columns_, stride_[1]);
  g.positions = (g.out_height - 1) * g.line + g.out_width;
  g.panels = (g.positions + kPanel - 1) / kPanel;

  float* y = output(context, {x.shape[0], weight_.outputs, g.out_height, g.out_width});
  const bool as_it_is = g.plane == g.height * g.width && g.phases[0] * g.phases[1] == 1 && stride_[0] * stride_[1] == 1;
  const int64_t images = g.channels * g.phases[0] * g.phases[1], size = static_cast<int64_t>(weight_.inputs) * kPanel;
  float* image = as_it_is ? nullptr : static_cast<float*>(scratch<Image>(images * g.plane * sizeof(float)));
  const auto multiply = [&](const float* panel_data, int64_t panel, int chunk, float* to) {
    float* sums = static_cast<float*>(scratch<Sums>(kChunk * kPanel * sizeof(float)));
    kernels_.multiply_turned(weight_, chunk, panel_data, kPanel, op_.activation, sums);
    keep(sums, g, panel, chunk, to);
  };
  for (int64_t n = 0; n < x.shape[0]; ++n) {
    const float* own = static_cast<const float*>(x.data) + n * g.channels * g.height * g.width;
    float* to = y + n * weight_.outputs * g.out_height * g.out_width;
    if (!as_it_is) lay_out(context, own, g, image);
    const float* from = as_it_is ? own : image;
    if (g.panels >= kFewPanels) {
      parallel(context, g.panels, [&](int64_t panel) {
        float* filled = static_cast<float*>(scratch<Panel>(size * sizeof(float)));
        fill(from, g, panel, filled);
        for (int chunk = 0; chunk < weight_.chunk_count(); ++chunk) multiply(filled, panel, chunk, to);
      });
    } else {
      float* filled = static_cast<float*>(scratch<Panel>(g.panels * size * sizeof(float)));
      parallel(context, g.panels, [&](int64_t panel) { fill(from, g, panel, filled + panel * size); });
      parallel(context, g.panels * weight_.chunk_count(), [&](int64_t task) {
        const int64_t panel = task / weight_.chunk_count();
        multiply(filled + panel * size, panel, static_cast<int>(task % weight_.chunk_count()), to);
      });
    }
  }
}

// Writes x, padded and cut, as image[channel][phase of the rows][phase of the columns][lines][line].
void Convolution::lay_out(OrtKernelContext* context, const float* x, const Geometry& g, float* image) const {
  parallel(context, g.channels, [&](int64_t channel) {
    float* to = image + channel * g.phases[0] * g.phases[1] * g.plane;
    const float* from = x + channel * g.height * g.width;
    for (int64_t a = 0; a < g.phases[0]; ++a)
      for (int64_t b = 0; b < g.phases[1]; ++b)
        for (int64_t line = 0; line < g.lines; ++line, to += g.line) {
          const int64_t row = line * stride_[0] + a - pads_[0];
          if (row < 0 || row >= g.height) {
            std::fill(to, to + g.line, 0.f);
            continue;
          }
          const float* own = from + row * g.width;
          if (stride_[1] == 1) {
            std::fill(to, to + pads_[1], 0.f);
            std::memcpy(to + pads_[1], own, g.width * sizeof(float));
            std::fill(to + pads_[1] + g.width, to + g.line, 0.f);
            continue;
          }
          for (int64_t i = 0; i < g.line; ++i) {
            const int64_t column = i * stride_[1] + b - pads_[1];
            to[i] = column >= 0 && column < g.width ? own[column] : 0.f;
          }
        }
  });
}

// What all inputs of W see of the panel's positions: to[input][64]. Floats beyond the image's end are zeros; those
// beyond a channel's end are the next channel's, at positions that are thrown away.
void Convolution::fill(const float* image, const Geometry& g, int64_t panel, float* to) const {
  const int64_t end = g.channels * g.phases[0] * g.phases[1] * g.plane;
  for (int64_t channel = 0; channel < g.channels; ++channel)
    for (int i = 0; i < rows_; ++i)
      for (int j = 0; j < columns_; ++j, to += kPanel) {
        const int64_t a = i % stride_[0], b = j % stride_[1];
        const int64_t first = ((channel * g.phases[0] + a) * g.phases[1] + b) * g.plane +
                              (i / stride_[0]) * g.line + j / stride_[1] + panel * kPanel;
        const int64_t count = std::min<int64_t>(kPanel, end - first);
        if (count == kPanel) {
          std::memcpy(to, image + first, kPanel * sizeof(float));
        } else {
          std::memset(to, 0, kPanel * sizeof(float));
          if (count > 0) std::memcpy(to, image + first, count * sizeof(float));
        }
      }
}

// Writes the positions of a panel that are in y, from sums[output][64].
void Convolution::keep(const float* sums, const Geometry& g, int64_t panel, int chunk, float* y) const {
  const int first_output = chunk * kChunk, outputs = std::min(kChunk, weight_.outputs - first_output);
  const int64_t first = panel * kPanel, last = std::min(first + kPanel, g.positions);
  for (int64_t line = first / g.line; line * g.line < last; ++line) {
    const int64_t begin = std::max(first, line * g.line), end = std::min(last, line * g.line + g.out_width);
    if (begin >= end) continue;
    float* to = y + first_output * g.out_height * g.out_width + line * g.out_width + (begin - line * g.line);
    for (int output = 0; output < outputs; ++output)
      std::memcpy(to + output * g.out_height * g.out_width, sums + output * kPanel + (begin - first),
                  (end - begin) * sizeof(float));
  }
}

}  // namespace sparseticket
