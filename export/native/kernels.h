// The arithmetic, once for each instruction set; what is called is chosen when the library is first used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weight.h"

namespace sparseticket {

enum class Activation { kNone, kRelu, kGelu };

// x as DynamicQuantizeLinear has it: x ~ (q - zero) * scale.
struct Quantized {
  float scale = 1;
  int32_t zero = 0;
};

// A panel is up to 64 rows of x, turned: [input][row]. `width` is its rows rounded up to whole vectors; floats lie
// [input][width], bytes [input][64] in an order of rows that only the instruction set itself knows. Panels begin at
// multiples of 64 bytes.
struct Kernels {
  const char* name;
  int lanes;              // floats of a vector
  const Kernels* narrow;  // with half as wide vectors, for fp32 and so few rows that they fill; or null
  // Turns inputs first ... last - 1 of a panel's rows; x is its first row.
  void (*turn)(const float* x, int rows, int inputs, int first, int last, int width, float* panel);
  // Writes outputs chunk*128 ... of act(x W^T + bias) for the panel's rows; y is its first row, `weight.outputs` long.
  void (*multiply)(const Weight& weight, int chunk, const float* panel, int width, int rows, Activation activation,
                   float* y);
  // The same, left turned: y[output][64], for convolutions, whose rows of x are positions of an image.
  void (*multiply_turned)(const Weight& weight, int chunk, const float* panel, int width, Activation activation,
                          float* y);
  // The same as `multiply` for one or two rows and blocks of 4 or 8, from x as it lies: a panel would be mostly empty.
  void (*multiply_rows)(const Weight& weight, int chunk, const float* x, int rows, Activation activation, float* y);
  void (*extremes)(const float* x, size_t count, float* least, float* greatest);
  void (*turn_int8)(const float* x, int rows, int inputs, int first, int last, Quantized quantized, uint8_t* panel);
  void (*multiply_int8)(const Weight& weight, int chunk, const uint8_t* panel, int width, int rows, Quantized quantized,
                        Activation activation, float* y);
  // y = (a + b - mean) / sqrt(variance + epsilon) * scale + bias, row by row of `size`.
  void (*add_norm)(const float* a, const float* b, const float* scale, const float* bias, int rows, int size,
                   float epsilon, float* y);
  // One head of one text: y = softmax(q k^T * scale + mask) v. Rows of q, k, v and y are `step` apart, `size` (a
  // multiple of 16) long; mask is [rows][keys]. `memory` is (size + 4) times the keys, rounded up to 16.
  void (*attend)(const float* q, const float* k, const float* v, const float* mask, int rows, int keys, int size,
                 int step, float scale, float* memory, float* y);
};

// The fastest that this CPU has, or what SPARSETICKET_ISA names: portable, avx2, avx512, avx512-vnni.
// Null where that is unknown or more than the CPU has.
const Kernels* chosen_kernels();

const Kernels* portable_kernels();
#if defined(__x86_64__)
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_vnni_kernels();
#endif

}  // namespace sparseticket
