#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "target.h"

TARGET_BEGIN("avx2,fma")
namespace sparseticket {
namespace {

#define LANES 8
#define SUMS 8  // of 16 registers

typedef int32_t Ints256 __attribute__((vector_size(32), may_alias));

// x / by, where inverse = 1 / by: corrected once, in instructions that round once, it is the division's own result at a
// third of its time.
inline __m256 divide(__m256 x, __m256 by, __m256 inverse) {
  const __m256 first = _mm256_mul_ps(x, inverse);
  return _mm256_fmadd_ps(_mm256_fnmadd_ps(first, by, x), inverse, first);
}

inline void store_bytes(Ints256 values, int row, uint8_t* out) {
  const __m128i low = _mm256_castsi256_si128((__m256i)values), high = _mm256_extracti128_si256((__m256i)values, 1);
  const __m128i bytes = _mm_packus_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
  _mm_storel_epi64((__m128i*)(out + row), bytes);
}

// Adds to each int32 the products of its four bytes of x (0 ... 255) and of the weights (-128 ... 127), exactly.
inline __m256i dot4(__m256i sum, __m256i x, __m256i weights) {
  const __m256i even = _mm256_and_si256(x, _mm256_set1_epi32(0x00ff00ff)), odd = _mm256_srli_epi16(x, 8);
  const __m256i even_weights = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, even_weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_srai_epi16(weights, 8)));
}

inline void dot_quads(const Quad* quads, size_t count, const uint8_t* panel, int width, int32_t (*dots)[kPanel]) {
  for (int first = 0; first < width; first += 16) {
    __m256i sum[4][2] = {};
    for (const Quad* quad = quads; quad < quads + count; ++quad) {
      __m128i row[4];
      for (int i = 0; i < 4; ++i)
        row[i] = _mm_load_si128((const __m128i*)(panel + (size_t)quad->inputs[i] * kPanel + first));
      const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
      const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
      const __m256i x[2] = {_mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23)),
                            _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23))};
      for (int b = 0; b < 4; ++b) {
        int32_t four;
        std::memcpy(&four, quad->weights[b], 4);
        for (int v = 0; v < 2; ++v) sum[b][v] = dot4(sum[b][v], x[v], _mm256_set1_epi32(four));
      }
    }
    for (int b = 0; b < 4; ++b)
      for (int v = 0; v < 2; ++v) _mm256_store_si256((__m256i*)(dots[b] + first + 8 * v), sum[b][v]);
  }
}

#include "kernels.inl"

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = {"avx2", LANES, nullptr, turn, multiply, multiply_turned, multiply_rows,
                                  extremes, turn_int8, multiply_int8, add_norm, attend};
  return &kernels;
}

}  // namespace sparseticket
TARGET_END
#endif
