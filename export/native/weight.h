// A sparse weight as the kernels read it, made once when the session is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sparseticket {

constexpr int kPanel = 64;   // rows of x side by side: one broadcast weight meets all of them
constexpr int kChunk = 128;  // outputs that are one task: their sums, 32 KiB, stay in the nearest cache

// What a node of the file says, before anything of it is believed.
struct Stored {
  int64_t inputs = 0, outputs = 0, axis = 0, block = 1;  // K, N
  const uint16_t* index = nullptr;
  std::vector<int64_t> index_shape;
  const void* values = nullptr;  // float, or int8 where is_int8
  std::vector<int64_t> values_shape;
  bool is_int8 = false;
  const float* scale = nullptr;  // one an output, int8 only
  std::vector<int64_t> scale_shape;
  const float* bias = nullptr;
  std::vector<int64_t> bias_shape;
};

// Live entries of one block of outputs: its place in the chunk, and how many of the stream are its own.
struct Visit {
  uint16_t block;
  uint16_t count;
};

// The live entries that a chunk of outputs has in a range of inputs.
struct Tile {
  std::vector<Visit> visits;     // by falling count, so that the loop's end is predicted
  std::vector<uint16_t> inputs;  // counted from the range's first
  std::vector<float> values;     // `block` a live entry
};

// Four live inputs of a block of four outputs: what one VNNI instruction takes. Missing ones are input 0 with weight 0.
struct Quad {
  uint16_t inputs[4];
  int8_t weights[4][4];  // [output][input]
};

struct Weight {
  int inputs = 0, outputs = 0, block = 1;
  int range = 0;                          // inputs of a tile
  std::vector<std::vector<Tile>> chunks;  // [chunk][range of inputs]; fp32
  std::vector<std::vector<Quad>> quads;   // [block of outputs]; int8
  std::vector<float> bias, scale;         // scale and sums: int8 only
  std::vector<int32_t> sums;              // of an output's weights: what the zero point of x adds

  int chunk_count() const { return (outputs + kChunk - 1) / kChunk; }
};

// Checks every shape, index and length, then packs. Returns what is wrong, or "" and fills `weight`.
std::string pack(const Stored& stored, Weight& weight);

}  // namespace sparseticket
