#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2")
namespace sparseticket {
namespace {

// Adds to each int32 the products of its four bytes of x (0 ... 255) and of the weights (-128 ... 127), exactly.
inline __m512i dot4(__m512i sum, __m512i x, __m512i weights) { return _mm512_dpbusd_epi32(sum, x, weights); }

#include "avx512.inl"

}  // namespace

const Kernels* avx512_vnni_kernels() {
  static const Kernels kernels = {"avx512-vnni", LANES, avx2_kernels(), turn, multiply, multiply_turned, multiply_rows,
                                  extremes, turn_int8, multiply_int8, add_norm, attend};
  return &kernels;
}

}  // namespace sparseticket
TARGET_END
#endif
