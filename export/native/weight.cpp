#include "weight.h"

#include <algorithm>
#include <cstring>

namespace sparseticket {
namespace {

constexpr int64_t kLargest = 65536;  // inputs or outputs: positions are uint16

// One block of a file's lines: `block` adjacent outputs of one input.
struct Entry {
  int input;
  const char* values;  // `block` of them
};

// An element of a file's tensor, whose data may begin at any byte.
template <class T>
T element(const T* data, int64_t i) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(data) + i * sizeof value, sizeof value);
  return value;
}

template <class T>
std::vector<T> elements(const T* data, int64_t count) {
  std::vector<T> copy(count);
  std::memcpy(copy.data(), data, count * sizeof(T));
  return copy;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string check(const Stored& s) {
  if (s.inputs < 1 || s.outputs < 1 || s.inputs > kLargest || s.outputs > kLargest)
    return "shape must be [inputs, outputs] with both from 1 to 65536";
  if (s.axis != 0 && s.axis != 1) return "axis must be 0 or 1";
  if (s.block != 1 && s.block != 2 && s.block != 4 && s.block != 8) return "a block has 1, 2, 4 or 8 outputs";
  if (s.is_int8 && s.block != 4) return "int8 weights come in blocks of 4 outputs";
  if (s.outputs % s.block) return "the block must divide the outputs";
  const int64_t lines = s.axis == 1 ? s.inputs : s.outputs / s.block;
  const int64_t longest = s.axis == 1 ? s.outputs / s.block : s.inputs;
  const int line_at = s.axis == 1 ? 0 : 1;
  if (s.index_shape.size() != 2 || s.index_shape[line_at] != lines || s.index_shape[1 - line_at] < 0 ||
      s.index_shape[1 - line_at] > longest)
    return "index has shape " + shape_text(s.index_shape) + ", which does not fit axis and shape";
  std::vector<int64_t> values = s.index_shape;
  values[1] *= s.block;
  if (s.values_shape != values)
    return "values have shape " + shape_text(s.values_shape) + ", not " + shape_text(values);
  const std::vector<int64_t> outputs = {s.outputs};
  if (s.bias_shape != outputs) return "bias has shape " + shape_text(s.bias_shape) + ", not " + shape_text(outputs);
  if (s.is_int8 && s.scale_shape != outputs)
    return "scale has shape " + shape_text(s.scale_shape) + ", not " + shape_text(outputs);

  const int64_t length = s.index_shape[1 - line_at], step = s.axis == 1 ? s.block : 1;
  const int64_t between_lines = s.axis == 1 ? length : 1, along = s.axis == 1 ? 1 : lines;
  for (int64_t line = 0; line < lines; ++line) {
    int64_t last = -1;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t at = element(s.index, line * between_lines + i * along);
      if (at >= longest * step || at % step) return "an index points outside of the weight or into a block";
      if (at <= last) return "the indices of a line must rise";
      last = at;
    }
  }
  return "";
}

bool is_padding(const char* values, int64_t block, bool is_int8) {
  for (int64_t b = 0; b < block; ++b) {
    const float value = is_int8 ? values[b] : element(reinterpret_cast<const float*>(values), b);
    if (value != 0) return false;  // -0 is padding too
  }
  return true;
}

// The blocks of outputs, each with its live entries by rising input.
std::vector<std::vector<Entry>> by_output(const Stored& s) {
  const size_t size = s.is_int8 ? sizeof(int8_t) : sizeof(float);
  const char* values = static_cast<const char*>(s.values);
  const int64_t blocks = s.outputs / s.block, rows = s.index_shape[0], columns = s.index_shape[1];
  std::vector<std::vector<Entry>> live(blocks);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t at = element(s.index, row * columns + column);
      const char* own = values + (row * columns + column) * s.block * size;
      if (is_padding(own, s.block, s.is_int8)) continue;
      if (s.axis == 1)
        live[at / s.block].push_back({static_cast<int>(row), own});
      else
        live[column].push_back({static_cast<int>(at), own});
    }
  return live;
}

void pack_tiles(const std::vector<std::vector<Entry>>& live, Weight& w) {
  // A tile of x is range * 64 floats. Single weights read it at one load each, so it must fit the nearest cache:
  // 128 inputs are 32 KiB. Blocks reuse what they load, and the next cache is near enough.
  w.range = w.block < 4 ? 128 : 512;
  const int ranges = (w.inputs + w.range - 1) / w.range, blocks_in_chunk = kChunk / w.block;
  w.chunks.resize(w.chunk_count());
  for (int chunk = 0; chunk < w.chunk_count(); ++chunk) {
    const int first = chunk * blocks_in_chunk;
    const int last = std::min<int>(first + blocks_in_chunk, static_cast<int>(live.size()));
    std::vector<size_t> next(last - first, 0);
    w.chunks[chunk].resize(ranges);
    for (int range = 0; range < ranges; ++range) {
      Tile& tile = w.chunks[chunk][range];
      std::vector<size_t> begin = next;
      for (int block = first; block < last; ++block) {
        const auto& entries = live[block];
        size_t& at = next[block - first];
        while (at < entries.size() && entries[at].input < (range + 1) * w.range) ++at;
        if (at > begin[block - first])
          tile.visits.push_back(
              {static_cast<uint16_t>(block - first), static_cast<uint16_t>(at - begin[block - first])});
      }
      std::stable_sort(tile.visits.begin(), tile.visits.end(),
                       [](const Visit& a, const Visit& b) { return a.count > b.count; });
      size_t count = 0;
      for (const Visit& visit : tile.visits) count += visit.count;
      tile.inputs.reserve(count);
      tile.values.reserve(count * w.block);
      for (const Visit& visit : tile.visits)
        for (size_t i = begin[visit.block], end = i + visit.count; i < end; ++i) {
          const Entry& entry = live[first + visit.block][i];
          tile.inputs.push_back(static_cast<uint16_t>(entry.input - range * w.range));
          for (int b = 0; b < w.block; ++b)
            tile.values.push_back(element(reinterpret_cast<const float*>(entry.values), b));
        }
    }
  }
}

void pack_quads(const std::vector<std::vector<Entry>>& live, Weight& w) {
  w.sums.assign(w.outputs, 0);
  w.quads.resize(live.size());
  for (size_t block = 0; block < live.size(); ++block) {
    const auto& entries = live[block];
    w.quads[block].resize((entries.size() + 3) / 4, Quad{});
    for (size_t i = 0; i < entries.size(); ++i) {
      Quad& quad = w.quads[block][i / 4];
      quad.inputs[i % 4] = static_cast<uint16_t>(entries[i].input);
      for (int b = 0; b < 4; ++b) {
        const int8_t value = static_cast<int8_t>(entries[i].values[b]);
        quad.weights[b][i % 4] = value;
        w.sums[block * 4 + b] += value;
      }
    }
  }
}

}  // namespace

std::string pack(const Stored& stored, Weight& weight) {
  if (std::string wrong = check(stored); !wrong.empty()) return wrong;
  weight.inputs = static_cast<int>(stored.inputs);
  weight.outputs = static_cast<int>(stored.outputs);
  weight.block = static_cast<int>(stored.block);
  weight.bias = elements(stored.bias, stored.outputs);
  const auto live = by_output(stored);
  if (stored.is_int8) {
    weight.scale = elements(stored.scale, stored.outputs);
    pack_quads(live, weight);
  } else {
    pack_tiles(live, weight);
  }
  return "";
}

}  // namespace sparseticket
