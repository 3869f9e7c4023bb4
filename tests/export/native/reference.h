// What a node means, computed the slow way; and whether it means anything at all.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "nodes.h"

struct Entry {
  int64_t input, output;  // output: the block's first
};

// By row of x (or position of an image) and output.
struct Expected {
  std::vector<double> y, allowed;  // allowed difference; NaN where float has no finite answer
};

struct Reference {
  const Kind& kind;
  bool makes_sense = true;
  int64_t inputs = 0, outputs = 0, block = 1;
  std::vector<Entry> entries;  // that have a value other than 0
  std::vector<float> values;   // `block` an entry
  std::vector<float> scale, bias;
  std::vector<int64_t> kernel, strides, pads;  // convolutions only

  Reference(const Kind& kind, const OrtKernelInfo& node) : kind(kind) {
    const auto integers = [&](const char* name) {
      const auto found = node.attributes.find(name);
      return found == node.attributes.end() ? std::vector<int64_t>{} : found->second;
    };
    const auto shape = integers("shape"), axis = integers("axis"), offsets = integers("offsets");
    kernel = integers("kernel_shape"), strides = integers("strides"), pads = integers("pads");
    const OrtValue &stored = node.inputs[1], &index = node.inputs[2];
    makes_sense = shape.size() == 2 && axis.size() == 1 && (axis[0] == 0 || axis[0] == 1) && index.type == kUint16 &&
                  index.shape.size() == 2 && stored.type == (kind.is_int8 ? kInt8 : kFloat) &&
                  stored.shape.size() == 2 && (!kind.blocked || !offsets.empty());
    for (size_t i = 1; makes_sense && i < node.inputs.size(); ++i)
      makes_sense =
          node.constant[i] &&
          (i < 3 || (node.inputs[i].type == kFloat && node.inputs[i].shape == std::vector<int64_t>{shape[1]}));
    if (kind.is_convolution)
      makes_sense = makes_sense && kernel.size() == 2 && strides.size() == 2 && pads.size() == 4 && kernel[0] > 0 &&
                    kernel[1] > 0 && strides[0] > 0 && strides[1] > 0 &&
                    *std::min_element(pads.begin(), pads.end()) >= 0 && kernel[0] < 65536 && kernel[1] < 65536 &&
                    shape[0] % (kernel[0] * kernel[1]) == 0;
    if (!makes_sense) return;
    inputs = shape[0], outputs = shape[1];
    block = kind.blocked ? offsets.size() : 1;
    const int64_t rows = index.shape[0], columns = index.shape[1];
    makes_sense = stored.shape[0] == rows && stored.shape[1] == columns * block &&
                  (axis[0] == 1 ? rows == inputs : columns * block == outputs);
    for (int64_t row = 0; makes_sense && row < rows; ++row)
      for (int64_t column = 0; makes_sense && column < columns; ++column) {
        const int64_t place = row * columns + column;
        uint16_t at;
        std::memcpy(&at, index.data() + place * sizeof at, sizeof at);
        const Entry entry{axis[0] == 1 ? row : at, axis[0] == 1 ? at : column * block};
        makes_sense = entry.input < inputs && entry.output + block <= outputs;
        bool is_live = false;
        for (int64_t b = 0; b < block; ++b) {
          float value;
          if (kind.is_int8)
            value = *reinterpret_cast<const int8_t*>(stored.data() + place * block + b);
          else
            std::memcpy(&value, stored.data() + (place * block + b) * sizeof value, sizeof value);
          is_live = is_live || value != 0;
          values.push_back(value);
        }
        if (is_live)
          entries.push_back(entry);
        else
          values.resize(values.size() - block);
      }
    if (!makes_sense) return;
    bias.resize(outputs), scale.resize(kind.is_int8 ? outputs : 0);
    std::memcpy(bias.data(), node.inputs.back().data(), node.inputs.back().bytes());
    if (kind.is_int8) std::memcpy(scale.data(), node.inputs[3].data(), node.inputs[3].bytes());
  }

  int64_t channels() const { return inputs / (kernel[0] * kernel[1]); }

  bool takes(const OrtValue& x) const {
    if (x.type != kFloat || x.shape.empty()) return false;
    if (!kind.is_convolution) return x.shape.back() == inputs;
    const int64_t most = 1 << 20;
    return x.shape.size() == 4 && x.shape[1] == channels() && x.shape[2] + pads[0] + pads[2] >= kernel[0] &&
           x.shape[3] + pads[1] + pads[3] >= kernel[1] && x.shape[2] + pads[0] + pads[2] <= most &&
           x.shape[3] + pads[1] + pads[3] <= most;
  }

  std::vector<int64_t> y_shape(std::vector<int64_t> x) const {
    if (!kind.is_convolution) {
      x.back() = outputs;
      return x;
    }
    return {x[0], outputs, (x[2] + pads[0] + pads[2] - kernel[0]) / strides[0] + 1,
            (x[3] + pads[1] + pads[3] - kernel[1]) / strides[1] + 1};
  }

  // Where an output of a row lies in y.
  int64_t place_in_y(int64_t row, int64_t output, const std::vector<int64_t>& shape) const {
    if (!kind.is_convolution) return row * outputs + output;
    const int64_t plane = shape[2] * shape[3];
    return (row / plane * outputs + output) * plane + row % plane;
  }

  // The rows of x as a linear layer has them.
  std::vector<float> rows_of(const OrtValue& x) const {
    const std::vector<float> from = x.floats();
    if (!kind.is_convolution) return from;
    const auto y = y_shape(x.shape);
    std::vector<float> rows;
    for (int64_t n = 0; n < y[0]; ++n)
      for (int64_t row = 0; row < y[2]; ++row)
        for (int64_t column = 0; column < y[3]; ++column)
          for (int64_t input = 0; input < inputs; ++input) {
            const int64_t channel = input / (kernel[0] * kernel[1]), place = input % (kernel[0] * kernel[1]);
            const int64_t h = row * strides[0] + place / kernel[1] - pads[0];
            const int64_t w = column * strides[1] + place % kernel[1] - pads[1];
            const bool within = h >= 0 && h < x.shape[2] && w >= 0 && w < x.shape[3];
            rows.push_back(within ? from[((n * x.shape[1] + channel) * x.shape[2] + h) * x.shape[3] + w] : 0);
          }
    return rows;
  }

  Expected product(const std::vector<float>& x) const {
    Expected expected;
    float by = 1, zero = 0;
    if (kind.is_int8) quantization(x, by, zero);
    std::vector<double> own(inputs);
    for (size_t row = 0; row < x.size(); row += inputs) {
      for (int64_t input = 0; input < inputs; ++input) {
        const float value = x[row + input];
        own[input] = !kind.is_int8 ? value : std::fmin(std::fmax(std::nearbyint(value / by) + zero, 0), 255) - zero;
      }
      std::vector<double> sum(outputs), size(outputs);
      for (size_t i = 0; i < entries.size(); ++i)
        for (int64_t b = 0; b < block; ++b) {
          const double added = values[i * block + b] * own[entries[i].input];
          sum[entries[i].output + b] += added;
          size[entries[i].output + b] += std::abs(added);
        }
      for (int64_t output = 0; output < outputs; ++output) {
        const double step = kind.is_int8 ? static_cast<double>(by) * scale[output] : 1, scaled = sum[output] * step;
        const double before = scaled + bias[output], added = std::abs(static_cast<double>(bias[output]));
        double allowed = kind.is_int8 ? 4e-7 * (std::abs(scaled) + added) : 1e-5 * (size[output] + added);
        double y = before;
        if (kind.activation == 'r') y = std::max(before, 0.);
        if (kind.activation == 'g') {
          y = before * .5 * (1 + std::erf(before * std::sqrt(.5)));
          allowed = 1.2 * allowed + 1e-6 * std::abs(before);
        }
        const bool is_finite = std::isfinite(before) && std::abs(scaled) < 1e37 && std::abs(step) < 1e37 &&
                               size[output] < 1e37 && added < 1e37;
        expected.y.push_back(y);
        expected.allowed.push_back(is_finite ? allowed + 1e-36 : NAN);
      }
    }
    return expected;
  }

 private:
  // DynamicQuantizeLinear of ONNX: the integers are exact, only their scaling rounds. `by` is NaN where x has values
  // that no byte can stand for.
  static void quantization(const std::vector<float>& x, float& by, float& zero) {
    float least = 0, greatest = 0;
    bool is_finite = true;
    for (float value : x) {
      is_finite = is_finite && std::isfinite(value);
      least = std::fmin(least, value), greatest = std::fmax(greatest, value);
    }
    by = least == greatest ? 1 : (greatest - least) / 255;
    if (!is_finite || !std::isfinite(by) || by < 1e-30f) by = NAN;
    zero = by > 0 && least < greatest ? std::fmin(std::fmax(std::nearbyint(-least / by), 0), 255) : 0;
  }
};
