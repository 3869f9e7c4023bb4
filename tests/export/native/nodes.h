// Random nodes as the exporter writes them, and what a broken or hostile file may hold instead.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "fake_runtime.h"

struct Draw {
  std::mt19937_64 engine;

  int64_t below(int64_t bound) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(bound)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[below(choices.size())];
  }
  float uniform() { return static_cast<float>(below(1 << 24)) / (1 << 23) - 1; }  // -1 ... 1
  float odd() {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    return of({nan, -nan, infinity, -infinity, -0.f, 0.f, 1e-40f, -1e-40f, 3e38f, -3e38f, 1e20f, -1e20f});
  }
  int64_t size() {  // around what the kernels take at once: 4, 8, 16 lanes, 64 rows, 128 outputs, 128 and 512 inputs
    return one_in(5) ? of<int64_t>({1, 2, 4, 8, 16, 64, 128, 256, 512, 1024}) + below(3) - (one_in(2) ? 0 : 1)
                     : 1 + below(one_in(25) ? 1200 : 70);
  }
};

struct Kind {
  const OrtCustomOp* op;
  bool blocked, is_int8, is_convolution, is_norm, is_attention;
  char activation;  // r of Relu, g of Gelu, or a blank

  explicit Kind(const OrtCustomOp* op) : op(op) {
    const std::string name = op->GetName(op);
    blocked = name.rfind("Block", 0) == 0;
    is_int8 = name.find("Int8") != std::string::npos;
    is_attention = name == "MaskedAttention";
    is_norm = name == "AddLayerNorm";
    is_convolution = name.find("Conv") != std::string::npos;
    activation = name.find("Relu") != std::string::npos ? 'r' : name.find("Gelu") != std::string::npos ? 'g' : ' ';
  }
};

// The exporter's own layout: lines padded to the longest with dead positions of value 0, indices rising.
inline OrtKernelInfo valid_node(Draw& draw, const Kind& kind) {
  const int64_t block = !kind.blocked ? 1 : kind.is_int8 ? 4 : draw.of<int64_t>({1, 2, 4, 8}), axis = draw.below(2);
  int64_t inputs = std::max<int64_t>(1, draw.size()), blocks = std::max<int64_t>(1, draw.size() / block);
  if (draw.one_in(400)) inputs = 65536 - draw.below(2), blocks = 1 + draw.below(4);
  if (draw.one_in(400)) blocks = 65536 / block - draw.below(2), inputs = 1 + draw.below(4);
  std::vector<int64_t> kernel = {1, 1};
  if (kind.is_convolution) {
    for (int64_t& size : kernel) size = draw.of<int64_t>({1, 1, 2, 3, 3, 5, 7});
    inputs = std::max<int64_t>(1, inputs / (kernel[0] * kernel[1])) * kernel[0] * kernel[1];
  }
  const int64_t outputs = blocks * block, lines = axis == 1 ? inputs : blocks, longest = axis == 1 ? blocks : inputs;

  const bool in_fours = draw.one_in(3);  // 4 adjacent inputs live or dead as one
  const int64_t density = draw.of({0, 5, 30, 30, 70, 100});
  std::vector<std::vector<char>> live(inputs, std::vector<char>(blocks));
  for (int64_t input = 0; input < inputs; ++input) {
    if (in_fours && input % 4) {
      live[input] = live[input - 1];
      continue;
    }
    const int64_t own = draw.one_in(2) ? density : draw.below(density + 1);
    for (char& alive : live[input]) alive = draw.below(100) < own;
  }
  std::vector<std::vector<uint16_t>> positions(lines);
  size_t length = draw.one_in(4) ? draw.below(longest + 1) : 0;
  const auto is_live = [&](int64_t line, int64_t at) { return axis == 1 ? live[line][at] : live[at][line]; };
  for (int64_t line = 0; line < lines; ++line) {
    size_t count = 0;
    for (int64_t at = 0; at < longest; ++at) count += is_live(line, at);
    length = std::max(length, count);
  }
  for (int64_t line = 0; line < lines; ++line) {
    std::vector<uint16_t>& own = positions[line];
    for (const bool wanted : {true, false})
      for (int64_t at = 0; at < longest && own.size() < length; ++at)
        if (is_live(line, at) == wanted) own.push_back(static_cast<uint16_t>(at));
    std::sort(own.begin(), own.end());
  }

  OrtKernelInfo node;
  const int64_t rows = axis == 1 ? lines : length, columns = axis == 1 ? length : lines;
  node.attributes = {{"shape", {inputs, outputs}}, {"axis", {axis}}};
  if (kind.blocked) {
    node.attributes["offsets"].assign(block, 0);
    for (int64_t b = 0; b < block && axis == 1; ++b) node.attributes["offsets"][b] = b;
  }
  if (kind.is_convolution) {
    const auto draw_some = [&](int count, std::initializer_list<int64_t> choices) {
      std::vector<int64_t> some(count);
      for (int64_t& one : some) one = draw.of(choices);
      return some;
    };
    node.attributes["kernel_shape"] = kernel;
    node.attributes["strides"] = draw_some(2, {1, 1, 1, 2, 3});
    node.attributes["pads"] = draw_some(4, {0, 0, 1, 1, 2, 3});
  }
  node.inputs.emplace_back(kFloat, std::vector<int64_t>{0});
  node.inputs.emplace_back(kind.is_int8 ? kInt8 : kFloat, std::vector<int64_t>{rows, columns * block});
  node.inputs.emplace_back(kUint16, std::vector<int64_t>{rows, columns});
  if (kind.is_int8) node.inputs.emplace_back(kFloat, std::vector<int64_t>{outputs});
  node.inputs.emplace_back(kFloat, std::vector<int64_t>{outputs});
  node.constant.assign(node.inputs.size(), true);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t line = axis == 1 ? row : column, at = positions[line][axis == 1 ? column : row];
      node.inputs[2].as<uint16_t>()[row * columns + column] = static_cast<uint16_t>(axis == 1 ? at * block : at);
      for (int64_t b = 0; b < block; ++b) {
        const int64_t place = (row * columns + column) * block + b;
        if (kind.is_int8)
          node.inputs[1].as<int8_t>()[place] = is_live(line, at) ? static_cast<int8_t>(draw.below(255) - 127) : 0;
        else
          node.inputs[1].as<float>()[place] = !is_live(line, at) ? draw.of({0.f, -0.f})
                                              : draw.one_in(9)   ? 0
                                                                 : draw.uniform();
      }
    }
  for (size_t input = 3; input < node.inputs.size(); ++input)
    for (int64_t output = 0; output < outputs; ++output)
      node.inputs[input].as<float>()[output] = draw.uniform() * (kind.is_int8 && input == 3 ? .01f : 1);
  return node;
}

inline int64_t odd_number(Draw& draw, int64_t now) {
  constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
  return draw.of<int64_t>({now + 1, now - 1, now * 2, now + 4, 0, 1, 2, 3, -1, -now, 65535, 65536, 65537,
                           now + (1LL << 32), 1LL << 31, 1LL << 62, most, least});
}

inline void mutate_shape(Draw& draw, std::vector<int64_t>& shape) {
  if (shape.empty() || draw.one_in(6)) return shape.push_back(draw.below(3));
  int64_t& dimension = shape[draw.below(shape.size())];
  switch (draw.below(6)) {
    case 0:
      ++dimension;
      break;
    case 1:
      dimension -= dimension > 0;
      break;
    case 2:
      std::reverse(shape.begin(), shape.end());
      break;
    case 3:
      shape.pop_back();
      break;
    case 4:
      dimension = 0;
      break;
    case 5: {
      const int64_t last = shape.size() - 1;
      shape[0] = draw.of<int64_t>({1LL << 31, 1LL << 61, 1LL << 62});
      shape[last] = last ? 0 : 1;
    }
  }
}

inline void mutate(Draw& draw, const Kind& kind, OrtKernelInfo& node) {
  const int64_t which = 1 + draw.below(node.inputs.size() - 1);
  OrtValue& tensor = node.inputs[which];
  OrtValue& index = node.inputs[2];
  switch (draw.below(kind.is_convolution ? 11 : 10)) {
    case 0:
    case 1: {  // positions: at and beyond both ends, falling, twice
      if (index.type != kUint16 || !index.aligned || !index.count()) return;
      uint16_t& position = index.as<uint16_t>()[draw.below(index.count())];
      const auto& shape = node.attributes["shape"];
      const int64_t end = shape.empty() ? 0 : shape[draw.below(shape.size())] % (1 << 20);
      position = static_cast<uint16_t>(
          draw.of<int64_t>({end, end - 1, end + 1, end - 4, position + 1, position - 1, 0, 65535, draw.below(65536)}));
      return;
    }
    case 2: {  // values
      if (tensor.type == kUint16 || !tensor.count()) return;
      const size_t size = OrtValue::element_size(tensor.type);
      for (int64_t n = 1 + draw.below(4); n > 0; --n) {
        const float value = draw.odd();
        const int8_t byte = draw.of<int8_t>({-128, 127, 0, -1});
        const void* from = size >= sizeof value ? static_cast<const void*>(&value) : &byte;
        std::memcpy(tensor.data() + draw.below(tensor.count()) * size, from, size >= sizeof value ? sizeof value : 1);
      }
      return;
    }
    case 3: {  // any that an initializer may have: ONNX Runtime itself refuses data that do not fill it
      mutate_shape(draw, tensor.shape);
      double count = 1;
      for (int64_t dimension : tensor.shape) count *= dimension;
      if (count > (1 << 22)) tensor.shape.back() = 0;
      break;
    }
    case 4:
      tensor.type = draw.of<int>({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16});
      break;
    case 5:
      tensor.aligned = false;
      break;
    case 6:
      node.constant[which] = false;
      return;
    case 7: {
      auto& shape = node.attributes["shape"];
      if (draw.one_in(4))
        shape.resize(draw.of({0, 1, 3, 16, 17}), 1);
      else if (!shape.empty()) {
        int64_t& number = shape[draw.below(shape.size())];
        number = odd_number(draw, number % (1LL << 32));
      }
      return;
    }
    case 8:
      if (draw.one_in(3))
        node.attributes.erase(draw.of<std::string>({"shape", "axis", "offsets"}));
      else
        node.attributes["axis"] = {odd_number(draw, draw.below(2))};
      return;
    case 9: {
      if (!kind.blocked) return;
      auto& offsets = node.attributes["offsets"];
      if (draw.one_in(2) || offsets.empty())
        offsets.resize(draw.of({0, 1, 2, 3, 4, 5, 8, 12, 16, 17, 64}), 0);
      else
        offsets[draw.below(offsets.size())] = odd_number(draw, 1);
      return;
    }
    case 10: {
      auto& numbers = node.attributes[draw.of<std::string>({"kernel_shape", "strides", "pads"})];
      if (draw.one_in(4) || numbers.empty())
        numbers.resize(draw.below(6), 1);
      else {
        int64_t& number = numbers[draw.below(numbers.size())];
        number = odd_number(draw, number % 100);
      }
      return;
    }
  }
  tensor.resize();
}
