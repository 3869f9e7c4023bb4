// AVX-512: 32 registers of 16 floats. Included by the two files that compile it with and without VNNI.
#define LANES 16
#define SUMS 16

typedef int32_t Ints512 __attribute__((vector_size(64), may_alias));

// x / by, where inverse = 1 / by: corrected once, in instructions that round once, it is the division's own result at a
// third of its time.
inline __m512 divide(__m512 x, __m512 by, __m512 inverse) {
  const __m512 first = _mm512_mul_ps(x, inverse);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(first, by, x), inverse, first);
}

// Byte of row r of a panel: rows in order 16j + 4l + e lie at 16l + 4j + e, so that unpacking four inputs' bytes leaves
// rows 16j ... 16j + 15 in one register.
inline void store_bytes(Ints512 values, int row, uint8_t* out) {
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)values);  // unmasked, gcc 12 warns about it
  const int j = row / 16;
  alignas(16) int32_t fours[4];
  _mm_store_si128((__m128i*)fours, bytes);
  for (int l = 0; l < 4; ++l) std::memcpy(out + 16 * l + 4 * j, &fours[l], 4);
}

template <int vectors>
inline void dot_quads_of(const Quad* quads, size_t count, const uint8_t* panel, int32_t (*dots)[kPanel]) {
  __m512i sum[4][vectors];
  for (int b = 0; b < 4; ++b)
    for (int v = 0; v < vectors; ++v) sum[b][v] = _mm512_setzero_si512();
  for (const Quad* quad = quads; quad < quads + count; ++quad) {
    __m512i row[4];
    for (int i = 0; i < 4; ++i) row[i] = _mm512_load_si512(panel + (size_t)quad->inputs[i] * kPanel);
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    const __m512i x[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                          _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
    for (int b = 0; b < 4; ++b) {
      int32_t four;
      std::memcpy(&four, quad->weights[b], 4);
      for (int v = 0; v < vectors; ++v) sum[b][v] = dot4(sum[b][v], x[v], _mm512_set1_epi32(four));
    }
  }
  for (int b = 0; b < 4; ++b)
    for (int v = 0; v < vectors; ++v) _mm512_store_si512(dots[b] + 16 * v, sum[b][v]);
}

inline void dot_quads(const Quad* quads, size_t count, const uint8_t* panel, int width, int32_t (*dots)[kPanel]) {
  switch (width / 16) {
    case 1: return dot_quads_of<1>(quads, count, panel, dots);
    case 2: return dot_quads_of<2>(quads, count, panel, dots);
    case 3: return dot_quads_of<3>(quads, count, panel, dots);
    default: return dot_quads_of<4>(quads, count, panel, dots);
  }
}

#include "kernels.inl"
