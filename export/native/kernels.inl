// The algorithm, in vectors of LANES floats. Each instruction set's file includes this inside its own namespace, after
// it has defined LANES and SUMS (how many vectors of sums its registers hold beside what a step loads).
//
// A panel of x is [input][row]: one weight, broadcast, meets a vector of rows. The sums of a chunk's outputs are kept
// [output][64] in the nearest cache, and turned back, with bias and activation, when all inputs have been added.

typedef float Floats __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), may_alias));
typedef float Loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Floats broadcast(float value) { return value - Floats{}; }  // value + 0 would turn -0 into 0
inline Floats pick(Ints where, Floats yes, Floats no) { return (Floats)(((Ints)yes & where) | ((Ints)no & ~where)); }
inline Floats at_least(Floats a, Floats least) { return pick(a > least, a, least); }  // NaN becomes `least`
inline Floats at_most(Floats a, Floats most) { return pick(a < most, a, most); }

template <int distance, int... lane>
inline void trade(Floats& a, Floats& b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  const Floats first = __builtin_shufflevector(a, b, ((lane & distance) ? LANES + lane - distance : lane)...);
  const Floats second = __builtin_shufflevector(a, b, ((lane & distance) ? LANES + lane : lane + distance)...);
#else
  const Floats first = __builtin_shuffle(a, b, Ints{((lane & distance) ? LANES + lane - distance : lane)...});
  const Floats second = __builtin_shuffle(a, b, Ints{((lane & distance) ? LANES + lane : lane + distance)...});
#endif
  a = first;
  b = second;
}

template <int distance>
inline void transpose_from(Floats* rows) {
  for (int i = 0; i < LANES; ++i)
    if (!(i & distance)) trade<distance>(rows[i], rows[i + distance], std::make_integer_sequence<int, LANES>());
  if constexpr (distance > 1) transpose_from<distance / 2>(rows);
}

inline void transpose(Floats* rows) { transpose_from<LANES / 2>(rows); }

// Loads LANES x LANES of x from row `row` and input `input`, 0 beyond `rows` and `inputs`, and turns them. Rows are
// `step` apart.
inline void load_turned(const float* x, int rows, int inputs, int step, int row, int input, Floats* out) {
  const int rows_left = std::min(LANES, rows - row), inputs_left = std::min(LANES, inputs - input);
  for (int i = 0; i < LANES; ++i) {
    out[i] = Floats{};
    if (i >= rows_left) continue;
    const float* own = x + (size_t)(row + i) * step + input;
    if (inputs_left == LANES)
      out[i] = *(const Loose*)own;
    else
      std::memcpy(&out[i], own, inputs_left * sizeof(float));
  }
  transpose(out);
}

void turn(const float* x, int rows, int inputs, int first, int last, int width, float* panel) {
  for (int input = first; input < last; input += LANES)
    for (int row = 0; row < width; row += LANES) {
      Floats tile[LANES];
      load_turned(x, rows, inputs, inputs, row, input, tile);
      for (int i = 0; i < std::min(LANES, last - input); ++i)
        *(Floats*)(panel + (size_t)(input + i) * width + row) = tile[i];
    }
}

// erf as x P(x^2)/Q(x^2) on [-4, 4], outside of which it is 1 in float: largest error 3e-7.
inline Floats gelu(Floats x) {
  const Floats a = at_most(at_least(x * 0.70710678118654752f, broadcast(-4.f)), broadcast(4.f)), b = a * a;
  const Floats p = ((((((-2.72614225801306e-10f * b + 2.77068142495902e-08f) * b - 2.10102402082508e-06f) * b -
                       5.69250639462346e-05f) * b - 7.34990630326855e-04f) * b - 2.95459980854025e-03f) * b -
                    1.60960333262415e-02f);
  const Floats q = ((((-1.45660718464996e-05f * b - 2.13374055278905e-04f) * b - 1.68282697438203e-03f) * b -
                     7.37332916720468e-03f) * b - 1.42647390514189e-02f);
  return 0.5f * x + 0.5f * x * (a * p / q);
}

inline Floats activate(Floats value, Activation activation) {
  if (activation == Activation::kRelu) return pick(value < 0.f, Floats{}, value);  // NaN stays
  return activation == Activation::kGelu ? gelu(value) : value;
}

// Turns the sums of `outputs` outputs back, adds the bias, and writes them at y.
void finish(const float* sums, int outputs, int width, int rows, const float* bias, Activation activation, int y_step,
            float* y) {
  for (int output = 0; output < outputs; output += LANES) {
    const int left = std::min(LANES, outputs - output);
    Floats added{};
    std::memcpy(&added, bias + output, left * sizeof(float));
    for (int row = 0; row < width && row < rows; row += LANES) {
      Floats tile[LANES];
      for (int i = 0; i < LANES; ++i) tile[i] = *(const Floats*)(sums + (output + i) * kPanel + row);
      transpose(tile);
      for (int i = 0; i < std::min(LANES, rows - row); ++i) {
        const Floats value = activate(tile[i] + added, activation);
        float* own = y + (size_t)(row + i) * y_step + output;
        if (left == LANES)
          *(Loose*)own = value;
        else
          std::memcpy(own, &value, left * sizeof(float));
      }
    }
  }
}

// Adds a tile's products to the sums of `vectors` vectors of rows. A sum waits four cycles for itself, so there are at
// least eight: where a block needs fewer, neighbouring entries add to sums of their own.
template <int block, int vectors>
void add_tile(const Tile& tile, const float* panel, int width, float* sums) {
  constexpr int sets = std::max(1, 8 / (block * vectors));
  const uint16_t* input = tile.inputs.data();
  const float* weights = tile.values.data();
  for (const Visit visit : tile.visits) {
    float* own = sums + visit.block * block * kPanel;
    Floats sum[sets][block][vectors] = {};
    for (int b = 0; b < block; ++b)
      for (int v = 0; v < vectors; ++v) sum[0][b][v] = *(const Floats*)(own + b * kPanel + v * LANES);
    const auto step = [&](Floats(&to)[block][vectors], int entry) {
      const float* x = panel + (size_t)input[entry] * width;
      for (int b = 0; b < block; ++b)
        for (int v = 0; v < vectors; ++v)
          to[b][v] += broadcast(weights[entry * block + b]) * *(const Floats*)(x + v * LANES);
    };
    int left = visit.count;
    for (; left >= sets; left -= sets, input += sets, weights += sets * block)
      for (int set = 0; set < sets; ++set) step(sum[set], set);
    for (; sets > 1 && left > 0; --left, ++input, weights += block) step(sum[0], 0);
    for (int b = 0; b < block; ++b)
      for (int v = 0; v < vectors; ++v) {
        Floats total = sum[0][b][v];
        for (int set = 1; set < sets; ++set) total += sum[set][b][v];
        *(Floats*)(own + b * kPanel + v * LANES) = total;
      }
  }
}

// Takes the panel's rows in as wide steps as the registers allow: 64 rows, or 32 and 16, ...
template <int block, int vectors>
void add_rows(const Tile& tile, const float* panel, int width, int row, float* sums) {
  for (; width - row >= vectors * LANES; row += vectors * LANES)
    add_tile<block, vectors>(tile, panel + row, width, sums + row);
  if constexpr (vectors > 1)
    if (row < width) add_rows<block, vectors / 2>(tile, panel, width, row, sums);
}

template <int block>
void add(const Tile& tile, const float* panel, int width, float* sums) {
  add_rows<block, std::min(kPanel / LANES, SUMS / block)>(tile, panel, width, 0, sums);
}

void sum_chunk(const Weight& weight, int chunk, const float* panel, int width, float* sums) {
  std::memset(sums, 0, kChunk * kPanel * sizeof(float));
  for (size_t range = 0; range < weight.chunks[chunk].size(); ++range) {
    const Tile& tile = weight.chunks[chunk][range];
    const float* own = panel + range * weight.range * width;
    switch (weight.block) {
      case 1: add<1>(tile, own, width, sums); break;
      case 2: add<2>(tile, own, width, sums); break;
      case 4: add<4>(tile, own, width, sums); break;
      case 8: add<8>(tile, own, width, sums); break;
    }
  }
}

void multiply(const Weight& weight, int chunk, const float* panel, int width, int rows, Activation activation,
              float* y) {
  alignas(64) float sums[kChunk * kPanel];
  sum_chunk(weight, chunk, panel, width, sums);
  const int first = chunk * kChunk;
  finish(sums, std::min(kChunk, weight.outputs - first), width, rows, weight.bias.data() + first, activation,
         weight.outputs, y + first);
}

void multiply_turned(const Weight& weight, int chunk, const float* panel, int width, Activation activation, float* y) {
  sum_chunk(weight, chunk, panel, width, y);
  const int first = chunk * kChunk;
  for (int output = 0; output < std::min(kChunk, weight.outputs - first); ++output)
    for (int position = 0; position < width; position += LANES) {
      Floats* own = (Floats*)(y + output * kPanel + position);
      *own = activate(*own + weight.bias[first + output], activation);
    }
}

// One row of x: here the outputs of a block, which lie side by side, make the vector. Four sums, because each must wait
// four cycles for itself.
template <int block>
void add_tile_to_row(const Tile& tile, const float* x, float* sums) {
  typedef float Block __attribute__((vector_size(block * 4), aligned(4), may_alias));
  const uint16_t* input = tile.inputs.data();
  const float* weights = tile.values.data();
  for (const Visit visit : tile.visits) {
    Block sum[4] = {*(const Block*)(sums + visit.block * block)};
    int left = visit.count;
    for (; left >= 4; left -= 4, input += 4, weights += 4 * block)
      for (int i = 0; i < 4; ++i) sum[i] += *(const Block*)(weights + i * block) * x[input[i]];
    for (; left > 0; --left, ++input, weights += block) sum[0] += *(const Block*)weights * x[*input];
    *(Block*)(sums + visit.block * block) = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

void multiply_rows(const Weight& weight, int chunk, const float* x, int rows, Activation activation, float* y) {
  const int first = chunk * kChunk, outputs = std::min(kChunk, weight.outputs - first);
  for (int row = 0; row < rows; ++row) {
    alignas(64) float sums[kChunk] = {};
    std::memcpy(sums, weight.bias.data() + first, outputs * sizeof(float));
    for (size_t range = 0; range < weight.chunks[chunk].size(); ++range) {
      const Tile& tile = weight.chunks[chunk][range];
      const float* own = x + (size_t)row * weight.inputs + range * weight.range;
      weight.block == 4 ? add_tile_to_row<4>(tile, own, sums) : add_tile_to_row<8>(tile, own, sums);
    }
    for (int output = 0; output < kChunk; output += LANES)
      *(Floats*)(sums + output) = activate(*(const Floats*)(sums + output), activation);
    std::memcpy(y + (size_t)row * weight.outputs + first, sums, outputs * sizeof(float));
  }
}

inline float total(Floats sums) {
  float all = 0;
  for (int lane = 0; lane < LANES; ++lane) all += sums[lane];
  return all;
}

void add_norm(const float* a, const float* b, const float* scale, const float* bias, int rows, int size, float epsilon,
              float* y) {
  const int whole = size / LANES * LANES;
  for (int row = 0; row < rows; ++row, a += size, b += size, y += size) {
    Floats sums[4] = {};  // of four, because each waits for itself
    float mean = 0, variance = 0;
    for (int i = 0; i < whole; i += LANES) {
      const Floats value = *(const Loose*)(a + i) + *(const Loose*)(b + i);
      *(Loose*)(y + i) = value;
      sums[i / LANES % 4] += value;
    }
    for (int i = whole; i < size; ++i) mean += y[i] = a[i] + b[i];
    mean = (mean + total((sums[0] + sums[1]) + (sums[2] + sums[3]))) / size;
    for (Floats& sum : sums) sum = Floats{};
    for (int i = 0; i < whole; i += LANES) {
      const Floats centred = *(const Loose*)(y + i) - mean;
      sums[i / LANES % 4] += centred * centred;
    }
    for (int i = whole; i < size; ++i) variance += (y[i] - mean) * (y[i] - mean);
    variance = (variance + total((sums[0] + sums[1]) + (sums[2] + sums[3]))) / size;
    const float inverse = 1.f / std::sqrt(variance + epsilon);
    for (int i = 0; i < whole; i += LANES)
      *(Loose*)(y + i) =
          (*(const Loose*)(y + i) - mean) * inverse * *(const Loose*)(scale + i) + *(const Loose*)(bias + i);
    for (int i = whole; i < size; ++i) y[i] = (y[i] - mean) * inverse * scale[i] + bias[i];
  }
}

// ---- attention ----

// exp of what is 0 or less: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], relative error 2e-7. Below -87 it is e^-87.
inline Floats exp_of_negative(Floats x) {
  x = at_least(x, broadcast(-87.f));
  const float to_whole = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  const Floats n = (x * 1.44269504088896341f + to_whole) - to_whole;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const Floats p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                    1.6666665459e-1f) * r + 5.0000001201e-1f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return (p * r * r + r + 1.f) * (Floats)power;
}

// scores[4][width] = four rows of q times the turned keys, `vectors` vectors of keys from `key` on.
template <int vectors>
void score(const float* const* q, const float* turned, int size, int width, int key, float* scores) {
  Floats sum[4][vectors] = {};
  for (int i = 0; i < size; ++i)
    for (int row = 0; row < 4; ++row)
      for (int v = 0; v < vectors; ++v)
        sum[row][v] += broadcast(q[row][i]) * *(const Floats*)(turned + (size_t)i * width + key + v * LANES);
  for (int row = 0; row < 4; ++row)
    for (int v = 0; v < vectors; ++v) *(Floats*)(scores + row * width + key + v * LANES) = sum[row][v];
}

// y = four rows of scores times v, `vectors` vectors of a head's values from `first` on.
template <int vectors>
void weigh(const float* scores, const float* factors, const float* v, int keys, int step, int width, int first,
           float* const* y) {
  Floats sum[4][vectors] = {};
  for (int key = 0; key < keys; ++key)
    for (int row = 0; row < 4; ++row)
      for (int i = 0; i < vectors; ++i)
        sum[row][i] += broadcast(scores[row * width + key]) * *(const Loose*)(v + (size_t)key * step + first + i * LANES);
  for (int row = 0; row < 4; ++row)
    for (int i = 0; i < vectors; ++i) *(Loose*)(y[row] + first + i * LANES) = sum[row][i] * factors[row];
}

// Turns scores * scale + mask into exponentials; returns 1 / their sum.
inline float soften(float* scores, const float* mask, int keys, int width, float scale) {
  for (int key = keys; key < width; ++key) scores[key] = 0;
  Floats greatest = broadcast(-__builtin_inff());
  int key = 0;
  for (; key + LANES <= keys; key += LANES) {
    const Floats value = *(const Floats*)(scores + key) * scale + *(const Loose*)(mask + key);
    *(Floats*)(scores + key) = value;
    greatest = pick(value > greatest, value, greatest);
  }
  float most = -__builtin_inff();
  for (int lane = 0; lane < LANES; ++lane) most = std::max(most, greatest[lane]);
  for (int rest = key; rest < keys; ++rest) most = std::max(most, scores[rest] = scores[rest] * scale + mask[rest]);
  Floats sum{};
  for (key = 0; key < width; key += LANES) {
    const Floats below = *(const Floats*)(scores + key) - most;
    Floats value = pick(below < -87.f, Floats{}, exp_of_negative(below));
    value = pick(below == below, value, below);  // NaN stays, and a row that is -infinity throughout becomes it
    if (key + LANES > keys)
      for (int lane = std::max(0, keys - key); lane < LANES; ++lane) value[lane] = 0;
    *(Floats*)(scores + key) = value;
    sum += value;
  }
  return 1.f / total(sum);
}

void attend(const float* q, const float* k, const float* v, const float* mask, int rows, int keys, int size, int step,
            float scale, float* memory, float* y) {
  constexpr int most = SUMS / 4;
  const int width = (keys + 15) / 16 * 16;
  float *turned = memory, *scores = memory + (size_t)size * width;
  for (int input = 0; input < size; input += LANES)
    for (int key = 0; key < width; key += LANES) {
      Floats tile[LANES];
      load_turned(k, keys, size, step, key, input, tile);
      for (int i = 0; i < LANES; ++i) *(Floats*)(turned + (size_t)(input + i) * width + key) = tile[i];
    }
  for (int first = 0; first < rows; first += 4) {
    const float* q_rows[4];
    float *y_rows[4], factors[4];
    for (int i = 0; i < 4; ++i) {  // the last row again, where there are fewer than four
      const size_t row = std::min(first + i, rows - 1);
      q_rows[i] = q + row * step;
      y_rows[i] = y + row * step;
    }
    int key = 0;
    for (; width - key >= most * LANES; key += most * LANES) score<most>(q_rows, turned, size, width, key, scores);
    for (; key < width; key += LANES) score<1>(q_rows, turned, size, width, key, scores);
    for (int i = 0; i < 4; ++i)
      factors[i] = soften(scores + i * width, mask + (size_t)std::min(first + i, rows - 1) * keys, keys, width, scale);
    int value = 0;
    for (; size - value >= most * LANES; value += most * LANES)
      weigh<most>(scores, factors, v, keys, step, width, value, y_rows);
    for (; value < size; value += LANES) weigh<1>(scores, factors, v, keys, step, width, value, y_rows);
  }
}

// ---- int8 ----

void extremes(const float* x, size_t count, float* least, float* greatest) {
  Floats low{}, high{};  // 0 is always within, as DynamicQuantizeLinear has it
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats value = *(const Loose*)(x + i);
    low = pick(value < low, value, low);
    high = pick(value > high, value, high);
  }
  for (int lane = 0; lane < LANES; ++lane) {
    *least = std::min(*least, low[lane]);
    *greatest = std::max(*greatest, high[lane]);
  }
  for (; i < count; ++i) {
    *least = std::min(*least, x[i]);
    *greatest = std::max(*greatest, x[i]);
  }
}

// round(x / scale) + zero, within 0 and 255.
inline Ints quantize(Floats x, float scale, float inverse, int32_t zero) {
  Floats quotient = divide(x, broadcast(scale), broadcast(inverse));
  quotient = at_most(at_least(quotient, broadcast(-(float)zero)), broadcast(255.f - zero));
  const float to_even = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  return __builtin_convertvector((quotient + to_even) - to_even, Ints) + zero;
}

void turn_int8(const float* x, int rows, int inputs, int first, int last, Quantized quantized, uint8_t* panel) {
  const float inverse = 1.f / quantized.scale;
  for (int input = first; input < last; input += LANES)
    for (int row = 0; row < rows; row += LANES) {
      Floats tile[LANES];
      load_turned(x, rows, inputs, inputs, row, input, tile);
      for (int i = 0; i < std::min(LANES, last - input); ++i)
        store_bytes(quantize(tile[i], quantized.scale, inverse, quantized.zero), row,
                    panel + (size_t)(input + i) * kPanel);
    }
}

void multiply_int8(const Weight& weight, int chunk, const uint8_t* panel, int width, int rows, Quantized quantized,
                   Activation activation, float* y) {
  alignas(64) float sums[kChunk * kPanel];
  const int first = chunk * kChunk, outputs = std::min(kChunk, weight.outputs - first);
  for (int output = 0; output < outputs; output += 4) {
    const std::vector<Quad>& quads = weight.quads[(first + output) / 4];
    alignas(64) int32_t dots[4][kPanel];
    dot_quads(quads.data(), quads.size(), panel, width, dots);
    for (int b = 0; b < 4; ++b) {
      const int32_t offset = quantized.zero * weight.sums[first + output + b];
      const float scale = quantized.scale * weight.scale[first + output + b];
      for (int row = 0; row < width; row += LANES)
        *(Floats*)(sums + (output + b) * kPanel + row) =
            __builtin_convertvector(*(const Ints*)(dots[b] + row) - offset, Floats) * scale;
    }
  }
  finish(sums, outputs, width, rows, weight.bias.data() + first, activation, weight.outputs, y + first);
}
