// A mutation test of the operators: random nodes, most of them broken, are offered to the library as ONNX Runtime
// offers those of a file, on every instruction set of this CPU. A broken one must be refused with a message; what is
// accepted must compute what it says. Built with AddressSanitizer and UBSan (`make fuzz-native`), which end the program
// at the first access out of bounds.
//
//   fuzz FIRST_SEED MINUTES     all seeds from the first until the time is over
//   fuzz SEED                   one again

#include <sanitizer/common_interface_defs.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <thread>

#include "kernels.h"
#include "reference.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

const sparseticket::Kernels* in_use = nullptr;
uint64_t seed = 0;

struct Counts {
  int64_t nodes = 0, valid = 0, accepted = 0, calls = 0, refused_calls = 0, injected = 0, compared = 0, not_finite = 0;
  std::map<std::string, int64_t> refused, calls_of;
} counts;

void say_where() {
  std::fprintf(stderr, "FAILED at seed %" PRIu64 ", %s\n", seed, in_use ? in_use->name : "no kernels");
}

[[noreturn]] void fail(const std::string& why) {
  say_where();
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

std::vector<const sparseticket::Kernels*> all_kernels() {
  std::vector<const sparseticket::Kernels*> all = {sparseticket::portable_kernels()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(sparseticket::avx2_kernels());
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    all.push_back(sparseticket::avx512_kernels());
    if (__builtin_cpu_supports("avx512vnni")) all.push_back(sparseticket::avx512_vnni_kernels());
  }
#endif
  return all;
}

std::vector<Kind> operators() {
  OrtSessionOptions options;
  in_use = nullptr;
  OrtStatus* status = RegisterCustomOps(&options, &fake::base);
  if (!status || status->message.find("SPARSETICKET_ISA") == std::string::npos) fail("registered without kernels");
  delete status;
  in_use = sparseticket::portable_kernels();
  fake::is_too_old = true;
  status = RegisterCustomOps(&options, &fake::base);
  if (!status || status->message.find("1.16.3") == std::string::npos) fail("registered with too old an ONNX Runtime");
  delete status;
  fake::is_too_old = false;
  status = RegisterCustomOps(&options, &fake::base);
  if (status || !options.domain) fail("does not register");
  return {options.domain->operators.begin(), options.domain->operators.end()};
}

// The message of a refusal, "" where there is none. It must name the operator and say something.
std::string message_of(OrtStatus* status, const Kind& kind) {
  if (fake::infos_held) fail("a tensor's description was not released");
  if (!status) return "";
  const std::string message = status->message, name = kind.op->GetName(kind.op);
  delete status;
  if (message == "injected failure" || message == "no such attribute" || message.rfind("the attribute is", 0) == 0)
    return message;
  if (message.rfind(name + ": ", 0) != 0 || message.size() < name.size() + 10) fail("not a message: '" + message + "'");
  return message.substr(name.size() + 2);
}

OrtValue random_x(Draw& draw, const Reference& reference) {
  std::vector<int64_t> shape;
  if (reference.kind.is_convolution) {
    shape = {draw.of<int64_t>({0, 1, 1, 1, 2}), reference.channels(), 1 + draw.below(20), 1 + draw.below(20)};
    for (int i = 0; i < 2; ++i) shape[2 + i] += std::max<int64_t>(0, reference.kernel[i] - reference.pads[i]);
  } else {
    const int64_t rows =
        reference.inputs * reference.outputs > 100000 ? draw.of<int64_t>({0, 1, 2, 3, 5, 9, 17})
        : draw.one_in(3)
            ? draw.below(140)
            : draw.of<int64_t>({0, 1, 1, 2, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129});
    shape = {rows, reference.inputs};
    if (rows == 1 && draw.one_in(2)) shape = {reference.inputs};
    if (rows % 2 == 0 && draw.one_in(2)) shape = {2, rows / 2, reference.inputs};
    if (draw.one_in(4)) shape.insert(shape.begin(), 1);
  }
  OrtValue x(kFloat, shape);
  float* values = x.as<float>();
  const float size = draw.of({1.f, 1.f, 30.f, 1e-3f, 1e15f});
  const bool halves = draw.one_in(4);  // quotients that lie between two integers
  for (int64_t i = 0; i < x.count(); ++i)
    values[i] = (halves ? draw.below(255 * 2 + 1) - 255.f : draw.uniform()) * size;
  if (draw.one_in(3) && x.count())
    for (int64_t n = draw.of<int64_t>({1, 1, 3, 100}); n > 0; --n) values[draw.below(x.count())] = draw.odd();
  return x;
}

void mutate_x(Draw& draw, OrtValue& x) {
  switch (draw.below(4)) {
    case 0:
      mutate_shape(draw, x.shape);
      break;
    case 1:
      x.type = draw.of<int>({3, 4, 6, 11});
      break;
    case 2:
      x.aligned = false;
      break;
    case 3:
      x.shape = {};
      break;
  }
  double count = 1;
  for (int64_t dimension : x.shape) count *= dimension;
  if (count > (1 << 22)) x.shape.back() = 0;
  x.resize();
}

struct Call {
  OrtValue x;
  bool is_whole, threads;  // is_whole: x fits the node
  Expected expected;
};

void compare(const Call& call, const Reference& reference, const OrtKernelContext& context) {
  const auto shape = reference.y_shape(call.x.shape);
  if (context.y.size() != 1 || context.y[0].shape != shape) fail("y has another shape than x asks for");
  const float* y = context.y[0].as<float>();
  for (size_t i = 0; i < call.expected.y.size(); ++i) {
    if (std::isnan(call.expected.allowed[i])) {
      ++counts.not_finite;
      continue;
    }
    ++counts.compared;
    const int64_t row = i / reference.outputs, output = i % reference.outputs;
    const float found = y[reference.place_in_y(row, output, shape)];
    if (!(std::abs(found - call.expected.y[i]) <= call.expected.allowed[i]))
      fail(reference.kind.op->GetName(reference.kind.op) + std::string(": output ") + std::to_string(output) +
           " of row " + std::to_string(row) + " is " + std::to_string(found) + ", not " +
           std::to_string(call.expected.y[i]) + ", K " + std::to_string(reference.inputs) + ", N " +
           std::to_string(reference.outputs) + ", block " + std::to_string(reference.block));
  }
}

void make_call(const Kind& kind, void* kernel, const Reference& reference, const Call& call, int failing) {
  OrtKernelContext context{{&call.x}, {}, call.threads};
  fake::calls_until_failure = failing;
  OrtStatus* status = nullptr;
  // in a thread of its own, so that the memory it keeps between calls is never larger than this call needs
  std::thread([&] { status = kind.op->KernelComputeV2(kernel, &context); }).join();
  const bool was_injected = failing >= 0 && fake::calls_until_failure < 0;
  fake::calls_until_failure = -1;
  const std::string wrong = message_of(status, kind);
  ++counts.calls;
  ++counts.calls_of[in_use->name];
  if (was_injected) {
    ++counts.injected;
    if (wrong != "injected failure") fail("a failure of ONNX Runtime was lost");
  } else if (call.is_whole) {
    if (!wrong.empty()) fail("refused a good x: " + wrong);
    compare(call, reference, context);
  } else {
    ++counts.refused_calls;
    if (wrong.empty()) fail("took an x that does not fit");
  }
}

std::vector<Call> random_calls(Draw& draw, const Reference& reference) {
  std::vector<Call> calls;
  for (int i = 0; i < 3; ++i) {
    Call call{random_x(draw, reference), true, draw.one_in(8), {}};
    if (draw.one_in(4)) mutate_x(draw, call.x);
    call.is_whole = reference.takes(call.x);
    if (call.is_whole) {
      double work = reference.inputs;  // of the reference, which is slow
      for (int64_t size : reference.y_shape(call.x.shape)) work *= size;
      if (work > 3e6) continue;
      call.expected = reference.product(reference.rows_of(call.x));
    }
    calls.push_back(std::move(call));
  }
  return calls;
}

// LayerNormalization(a + b): all four inputs come with the call, so all four may be anything.
void run_norm(Draw& draw, const Kind& kind, const std::vector<const sparseticket::Kernels*>& kernel_sets) {
  OrtKernelInfo node;
  node.number = draw.one_in(4) ? draw.odd() : 1e-5f;
  const int64_t size = draw.size(), rows = draw.below(40);
  std::vector<OrtValue> inputs;
  for (int i = 0; i < 4; ++i) {
    inputs.emplace_back(kFloat, i < 2 ? std::vector<int64_t>{rows, size} : std::vector<int64_t>{size});
    for (int64_t j = 0; j < inputs[i].count(); ++j)
      inputs[i].as<float>()[j] = draw.one_in(2000) ? draw.odd() : draw.uniform();
  }
  if (draw.one_in(2)) mutate_x(draw, inputs[draw.below(4)]);
  bool fits = !inputs[0].shape.empty() && inputs[0].shape == inputs[1].shape && inputs[0].shape.back() <= 1 << 20;
  for (const OrtValue& input : inputs) fits = fits && input.type == kFloat;
  for (int i = 2; fits && i < 4; ++i) fits = inputs[i].shape == std::vector<int64_t>{inputs[0].shape.back()};
  const int failing = draw.one_in(8) ? static_cast<int>(draw.below(25)) : -1;
  for (const auto* kernels : kernel_sets) {
    in_use = kernels;
    void* kernel = nullptr;
    const std::string wrong = message_of(kind.op->CreateKernelV2(kind.op, fake::api(), &node, &kernel), kind);
    if (wrong.empty() != (node.number >= 0)) fail("epsilon " + std::to_string(node.number) + ": " + wrong);
    if (!wrong.empty()) continue;
    OrtKernelContext context{{&inputs[0], &inputs[1], &inputs[2], &inputs[3]}, {}, draw.one_in(8)};
    fake::calls_until_failure = failing;
    const std::string refused = message_of(kind.op->KernelComputeV2(kernel, &context), kind);
    const bool was_injected = failing >= 0 && fake::calls_until_failure < 0;
    fake::calls_until_failure = -1;
    kind.op->KernelDestroy(kernel);
    ++counts.calls_of[kernels->name];
    counts.injected += was_injected;
    counts.refused_calls += !fits && !was_injected;
    if (was_injected ? refused.empty() : refused.empty() != fits) fail("AddLayerNorm: '" + refused + "'");
    if (!refused.empty()) continue;
    const auto a = inputs[0].floats(), b = inputs[1].floats(), scale = inputs[2].floats(), bias = inputs[3].floats();
    const size_t length = scale.size();
    for (size_t first = 0; first < a.size(); first += length) {
      double mean = 0, variance = node.number, most = 0;
      for (size_t i = 0; i < length; ++i) mean += (static_cast<double>(a[first + i]) + b[first + i]) / length;
      for (size_t i = 0; i < length; ++i) {
        const double centred = static_cast<double>(a[first + i]) + b[first + i] - mean;
        variance += centred * centred / length,
            most = std::max(most, std::abs(static_cast<double>(a[first + i]) + b[first + i]));
      }
      for (size_t i = 0; i < length; ++i) {
        const double y =
            (static_cast<double>(a[first + i]) + b[first + i] - mean) / std::sqrt(variance) * scale[i] + bias[i];
        // near-equal values leave rounding alone in the variance, and their squares must be floats
        const bool is_fair = std::isfinite(y) && variance > 1e-6 * most * most && variance < 1e30 &&
                             std::abs(scale[i]) < 1e30 && std::abs(bias[i]) < 1e30;
        ++(is_fair ? counts.compared : counts.not_finite);
        const double allowed =
            1e-4 * (std::abs(scale[i]) * (1 + most / std::sqrt(variance)) + std::abs(bias[i])) + 1e-30;
        const float found = context.y[0].as<float>()[first + i];
        if (is_fair && !(std::abs(found - y) <= allowed))
          fail("AddLayerNorm gives " + std::to_string(found) + ", not " + std::to_string(y));
      }
    }
  }
}

// softmax(q k^T scale + mask) v, a head at a time: here too everything comes with the call.
void run_attention(Draw& draw, const Kind& kind, const std::vector<const sparseticket::Kernels*>& kernel_sets) {
  OrtKernelInfo node;
  node.number = draw.one_in(8) ? draw.odd() : .25f;
  const int64_t heads = 1 + draw.below(3), size = 16 * (1 + draw.below(5)), texts = draw.below(3);
  const int64_t rows = draw.below(40), keys = draw.below(draw.one_in(4) ? 150 : 40), step = heads * size;
  node.attributes["split"] = {0, 0, heads, size};
  const bool is_valid = !draw.one_in(4);
  if (!is_valid) {
    auto& split = node.attributes["split"];
    if (draw.one_in(3))
      split.resize(draw.below(20), 16);
    else
      split[draw.below(4)] = odd_number(draw, 16);
  }
  std::vector<OrtValue> inputs;
  inputs.emplace_back(kFloat, std::vector<int64_t>{texts, rows, step});
  for (int i = 0; i < 2; ++i) inputs.emplace_back(kFloat, std::vector<int64_t>{texts, keys, step});
  inputs.emplace_back(kFloat, std::vector<int64_t>{texts, 1, rows, keys});
  const bool is_odd = draw.one_in(3);
  for (const OrtValue& input : inputs)
    for (int64_t i = 0; i < input.count(); ++i)
      input.as<float>()[i] = is_odd && draw.one_in(500) ? draw.odd() : draw.uniform();
  const bool is_whole = !draw.one_in(3);
  if (!is_whole) mutate_x(draw, inputs[draw.below(4)]);
  for (const auto* kernels : kernel_sets) {
    in_use = kernels;
    void* kernel = nullptr;
    const std::string wrong = message_of(kind.op->CreateKernelV2(kind.op, fake::api(), &node, &kernel), kind);
    if (is_valid && !wrong.empty()) fail("MaskedAttention refused: " + wrong);
    if (!wrong.empty()) continue;
    OrtKernelContext context{{&inputs[0], &inputs[1], &inputs[2], &inputs[3]}, {}, draw.one_in(8)};
    OrtStatus* status = nullptr;
    std::thread([&] { status = kind.op->KernelComputeV2(kernel, &context); }).join();
    const std::string refused = message_of(status, kind);
    kind.op->KernelDestroy(kernel);
    ++counts.calls_of[kernels->name];
    counts.refused_calls += !refused.empty();
    if (is_valid && is_whole && refused.empty() == (keys == 0 && texts * rows > 0))
      fail("MaskedAttention: '" + refused + "'");
    if (!is_valid || !is_whole || is_odd || !refused.empty() || node.number != .25f) continue;
    const float *q = inputs[0].as<float>(), *k = inputs[1].as<float>(), *v = inputs[2].as<float>();
    for (int64_t i = 0; i < texts * rows * heads; ++i) {
      const int64_t row = i / heads, text = row / rows, at = row * step + i % heads * size;
      std::vector<double> weight(keys), y(size);
      double all = 0;
      for (int64_t key = 0; key < keys; ++key) {
        double score = inputs[3].as<float>()[row * keys + key];
        for (int64_t e = 0; e < size; ++e)
          score += .25 * q[at + e] * k[(text * keys + key) * step + i % heads * size + e];
        all += weight[key] = std::exp(score);
      }
      for (int64_t key = 0; key < keys; ++key)
        for (int64_t e = 0; e < size; ++e)
          y[e] += weight[key] / all * v[(text * keys + key) * step + i % heads * size + e];
      for (int64_t e = 0; e < size; ++e, ++counts.compared)
        if (!(std::abs(context.y[0].as<float>()[at + e] - y[e]) <= 1e-5)) fail("MaskedAttention is wrong");
    }
  }
}

void run_seed(const std::vector<Kind>& kinds, const std::vector<const sparseticket::Kernels*>& kernel_sets) {
  Draw draw{std::mt19937_64(seed)};
  const Kind& kind = kinds[draw.below(kinds.size())];
  if (kind.is_attention) return run_attention(draw, kind, kernel_sets);
  if (kind.is_norm) return run_norm(draw, kind, kernel_sets);
  OrtKernelInfo node = valid_node(draw, kind);
  const int64_t mutations = draw.below(4);
  for (int64_t i = 0; i < mutations; ++i) mutate(draw, kind, node);
  const Reference reference(kind, node);
  const int failing = draw.one_in(8) ? static_cast<int>(draw.below(35)) : -1;
  ++counts.nodes;
  counts.valid += mutations == 0;
  std::vector<Call> calls;
  for (const auto* kernels : kernel_sets) {
    in_use = kernels;
    void* kernel = nullptr;
    fake::calls_until_failure = failing;
    OrtStatus* status = kind.op->CreateKernelV2(kind.op, fake::api(), &node, &kernel);
    const bool was_injected = failing >= 0 && fake::calls_until_failure < 0;
    fake::calls_until_failure = -1;
    const std::string wrong = message_of(status, kind);
    if (wrong.empty() == (kernel == nullptr)) fail("a kernel that was refused, or none and no message");
    if (!wrong.empty()) {
      if (mutations == 0 && !was_injected) fail("refused a good node: " + wrong);
      if (kernels == kernel_sets[0]) ++counts.refused[wrong.substr(0, wrong.find('['))];
      continue;
    }
    if (!reference.makes_sense) fail("accepted a node that means nothing");
    if (kernels == kernel_sets[0]) ++counts.accepted;
    if (calls.empty()) calls = random_calls(draw, reference);
    for (const Call& call : calls) make_call(kind, kernel, reference, call, draw.one_in(20) ? draw.below(9) : -1);
    kind.op->KernelDestroy(kernel);
  }
}

}  // namespace

// In place of isa.cpp, which chooses once for a process.
const sparseticket::Kernels* sparseticket::chosen_kernels() { return in_use; }

int main(int count, char** arguments) {
  if (count != 2 && count != 3) return std::fprintf(stderr, "fuzz FIRST_SEED MINUTES, or fuzz SEED\n"), 2;
  __sanitizer_set_death_callback(say_where);
  const auto kernel_sets = all_kernels();
  const auto kinds = operators();
  const uint64_t first = std::strtoull(arguments[1], nullptr, 10);
  const double minutes = count == 3 ? std::atof(arguments[2]) : 0;
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 60;
  };
  seed = first;
  do run_seed(kinds, kernel_sets);
  while (passed() < minutes && ++seed);

  std::printf("compiler          %s\n", __VERSION__);
  std::printf("seeds             %" PRIu64 " ... %" PRIu64 ", %.1f minutes\n", first, seed, passed());
  std::printf("nodes             %" PRId64 ", of which unchanged %" PRId64 "\n", counts.nodes, counts.valid);
  std::printf("accepted          %" PRId64 "\n", counts.accepted);
  for (const auto& [why, times] : counts.refused) std::printf("refused %9" PRId64 " %s\n", times, why.c_str());
  for (const auto& [name, times] : counts.calls_of) std::printf("calls %11" PRId64 " on %s\n", times, name.c_str());
  std::printf("calls refused     %" PRId64 "\n", counts.refused_calls);
  std::printf("failures injected %" PRId64 " in calls\n", counts.injected);
  std::printf("outputs compared  %" PRId64 ", without a finite answer %" PRId64 "\n", counts.compared,
              counts.not_finite);
}
