#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")
namespace sparseticket {
namespace {

// Adds to each int32 the products of its four bytes of x (0 ... 255) and of the weights (-128 ... 127), exactly.
inline __m512i dot4(__m512i sum, __m512i x, __m512i weights) {
  const __m512i even = _mm512_and_si512(x, _mm512_set1_epi32(0x00ff00ff)), odd = _mm512_srli_epi16(x, 8);
  const __m512i even_weights = _mm512_srai_epi16(_mm512_slli_epi16(weights, 8), 8);
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even, even_weights));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(odd, _mm512_srai_epi16(weights, 8)));
}

#include "avx512.inl"

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = {"avx512", LANES, avx2_kernels(), turn, multiply, multiply_turned, multiply_rows,
                                  extremes, turn_int8, multiply_int8, add_norm, attend};
  return &kernels;
}

}  // namespace sparseticket
TARGET_END
#endif
