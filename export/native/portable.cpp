#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace sparseticket {
namespace {

#define LANES 4
#define SUMS 8  // of the 16 registers of SSE2, or 32 of NEON

typedef int32_t Ints128 __attribute__((vector_size(16), may_alias));

typedef float Floats128 __attribute__((vector_size(16), may_alias));

// Not by the inverse: where no instruction multiplies and adds in one, halves would be rounded the other way.
inline Floats128 divide(Floats128 x, Floats128 by, Floats128) { return x / by; }

inline void store_bytes(Ints128 values, int row, uint8_t* out) {
  for (int lane = 0; lane < 4; ++lane) out[row + lane] = static_cast<uint8_t>(values[lane]);
}

inline void dot_quads(const Quad* quads, size_t count, const uint8_t* panel, int width, int32_t (*dots)[kPanel]) {
  std::memset(dots, 0, 4 * sizeof *dots);
  for (const Quad* quad = quads; quad < quads + count; ++quad)
    for (int i = 0; i < 4; ++i) {
      const uint8_t* x = panel + (size_t)quad->inputs[i] * kPanel;
      for (int b = 0; b < 4; ++b)
        for (int row = 0; row < width; ++row) dots[b][row] += quad->weights[b][i] * x[row];
    }
}

#include "kernels.inl"

}  // namespace

const Kernels* portable_kernels() {
  static const Kernels kernels = {"portable", LANES, nullptr, turn, multiply, multiply_turned, multiply_rows,
                                  extremes, turn_int8, multiply_int8, add_norm, attend};
  return &kernels;
}

}  // namespace sparseticket
