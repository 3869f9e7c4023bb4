// The operators as ONNX Runtime sees them: what a node holds is checked and packed when the session is made; each call
// turns x into panels, and multiplies them chunk by chunk on ONNX Runtime's own threads.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"
#include "weight.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace sparseticket {
namespace {

constexpr int64_t kFew = 2;  // rows that need no panel, where outputs come in blocks of 4 or 8
constexpr int kSlice = 1024;             // inputs that one task turns
constexpr int64_t kCounted = 64 * 1024;  // values that one task takes the extremes of

struct Operator : OrtCustomOp {
  const char* name;
  bool blocked, is_int8;
  Activation activation;
};

struct Failure {
  OrtStatus* status;
};

void must(OrtStatus* status) {
  if (status) throw Failure{status};
}

template <class Work>
OrtStatus* guarded(const OrtApi& api, const char* name, Work work) {
  std::string wrong;
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    wrong = "there is not enough memory";
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  return api.CreateStatus(ORT_INVALID_ARGUMENT, (std::string(name) + ": " + wrong).c_str());
}

struct Tensor {
  int type = 0;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

Tensor read(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* held = nullptr;
  must(api.GetTensorTypeAndShape(value, &held));
  const auto release = [&api](OrtTensorTypeAndShapeInfo* info) { api.ReleaseTensorTypeAndShapeInfo(info); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(held, release);
  Tensor tensor;
  must(api.GetTensorElementType(info.get(), &tensor.type));
  size_t count = 0;
  must(api.GetDimensionsCount(info.get(), &count));
  tensor.shape.resize(count);
  must(api.GetDimensions(info.get(), tensor.shape.data(), count));
  void* data = nullptr;
  must(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

Tensor constant(const OrtApi& api, const OrtKernelInfo* info, size_t index, ElementType type, const char* name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  must(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant || !value) throw std::invalid_argument(std::string(name) + " must be constant (an initializer)");
  Tensor tensor = read(api, value);
  if (tensor.type != type) throw std::invalid_argument(std::string(name) + " has another type than the operator takes");
  return tensor;
}

std::vector<int64_t> integers(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
  int64_t values[16];
  size_t count = 16;
  must(api.KernelInfoGetAttributeArray_int64(info, name, values, &count));
  return {values, values + count};
}

// Memory for panels, kept by the calling thread: a fresh one costs a page fault each 4 KiB, every call.
void* panel_memory(size_t bytes) {
  struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { std::free(data); }
  };
  static thread_local Memory memory;
  if (memory.size < bytes) {
    std::free(memory.data);
    memory = {};
    memory.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory.data) throw std::bad_alloc();
    memory.size = bytes;
  }
  return memory.data;
}

class Node {
 public:
  Node(const OrtApi& api, const Operator& op, const OrtKernelInfo* info)
      : api_(api), op_(op), kernels_(*chosen_kernels()) {
    Stored stored;
    const std::vector<int64_t> shape = integers(api, info, "shape");
    if (shape.size() != 2) throw std::invalid_argument("shape must be [inputs, outputs]");
    stored.inputs = shape[0];
    stored.outputs = shape[1];
    must(api.KernelInfoGetAttribute_int64(info, "axis", &stored.axis));
    if (op.blocked) stored.block = static_cast<int64_t>(integers(api, info, "offsets").size());
    stored.is_int8 = op.is_int8;
    const Tensor values = constant(api, info, 1, op.is_int8 ? kInt8 : kFloat, "values");
    const Tensor index = constant(api, info, 2, kUint16, "index");
    if (op.is_int8) {
      const Tensor scale = constant(api, info, 3, kFloat, "scale");
      stored.scale = static_cast<const float*>(scale.data);
      stored.scale_shape = scale.shape;
    }
    const Tensor bias = constant(api, info, op.is_int8 ? 4 : 3, kFloat, "bias");
    stored.values = values.data;
    stored.values_shape = values.shape;
    stored.index = static_cast<const uint16_t*>(index.data);
    stored.index_shape = index.shape;
    stored.bias = static_cast<const float*>(bias.data);
    stored.bias_shape = bias.shape;
    if (const std::string wrong = pack(stored, weight_); !wrong.empty()) throw std::invalid_argument(wrong);
  }

  const OrtApi& api() const { return api_; }
  const char* name() const { return op_.name; }

  void compute(OrtKernelContext* context) const {
    const OrtValue* input = nullptr;
    must(api_.KernelContext_GetInput(context, 0, &input));
    if (!input) throw std::invalid_argument("x is missing");
    Tensor x = read(api_, input);
    if (x.type != kFloat) throw std::invalid_argument("x must be float");
    if (x.shape.empty() || x.shape.back() != weight_.inputs)
      throw std::invalid_argument("the last dimension of x must be " + std::to_string(weight_.inputs));
    if (reinterpret_cast<uintptr_t>(x.data) % alignof(float))
      throw std::invalid_argument("x must lie at a multiple of 4 bytes");
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) rows *= x.shape[i];
    x.shape.back() = weight_.outputs;
    OrtValue* output = nullptr;
    must(api_.KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &output));
    void* y = nullptr;
    must(api_.GetTensorMutableData(output, &y));
    if (rows == 0) return;
    const Call call{context, static_cast<const float*>(x.data), static_cast<float*>(y), rows, (rows + kPanel - 1) / kPanel};
    op_.is_int8 ? run_int8(call) : run(call);
  }

 private:
  struct Call {
    OrtKernelContext* context;
    const float* x;
    float* y;
    int64_t rows, panels;

    int rows_of(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kPanel, rows - panel * kPanel)); }
    int width_of(int64_t panel, int lanes) const { return (rows_of(panel) + lanes - 1) / lanes * lanes; }
  };

  template <class Work>
  void parallel(const Call& call, int64_t count, Work work) const {
    must(api_.KernelContext_ParallelFor(
        call.context, [](void* own, size_t i) { (*static_cast<Work*>(own))(static_cast<int64_t>(i)); },
        static_cast<size_t>(count), static_cast<size_t>(count), &work));
  }

  // Calls work(panel, first input, last input) for all that is to be turned.
  template <class Work>
  void turned(const Call& call, Work work) const {
    const int64_t slices = (weight_.inputs + kSlice - 1) / kSlice;
    parallel(call, call.panels * slices, [&](int64_t task) {
      const int first = static_cast<int>(task % slices) * kSlice;
      work(task / slices, first, std::min(first + kSlice, weight_.inputs));
    });
  }

  // Calls work(panel, chunk) for all that is to be multiplied.
  template <class Work>
  void multiplied(const Call& call, Work work) const {
    const int64_t chunks = weight_.chunk_count();
    parallel(call, call.panels * chunks,
             [&](int64_t task) { work(task / chunks, static_cast<int>(task % chunks)); });
  }

  const float* x_of(const Call& call, int64_t panel) const { return call.x + panel * kPanel * weight_.inputs; }
  float* y_of(const Call& call, int64_t panel) const { return call.y + panel * kPanel * weight_.outputs; }

  void run(const Call& call) const {
    if (call.rows <= kFew && weight_.block >= 4) return run_rows(call);
    // 4 rows of 768 x 768 at 70 % zeros, 4x1: 59 us in vectors of 16, 38 us in vectors of 8
    const Kernels& kernels = kernels_.narrow && call.rows <= kernels_.narrow->lanes ? *kernels_.narrow : kernels_;
    const size_t size = static_cast<size_t>(weight_.inputs) * kPanel;
    float* panels = static_cast<float*>(panel_memory(call.panels * size * sizeof(float)));
    turned(call, [&](int64_t panel, int first, int last) {
      kernels.turn(x_of(call, panel), call.rows_of(panel), weight_.inputs, first, last,
                   call.width_of(panel, kernels.lanes), panels + panel * size);
    });
    multiplied(call, [&](int64_t panel, int chunk) {
      kernels.multiply(weight_, chunk, panels + panel * size, call.width_of(panel, kernels.lanes),
                       call.rows_of(panel), op_.activation, y_of(call, panel));
    });
  }

  void run_rows(const Call& call) const {
    parallel(call, weight_.chunk_count(), [&](int64_t chunk) {
      kernels_.multiply_rows(weight_, static_cast<int>(chunk), call.x, static_cast<int>(call.rows), op_.activation,
                             call.y);
    });
  }

  Quantized quantized(const Call& call) const {
    const int64_t count = call.rows * weight_.inputs, parts = (count + kCounted - 1) / kCounted;
    std::vector<float> least(parts, 0), greatest(parts, 0);
    parallel(call, parts, [&](int64_t part) {
      const int64_t first = part * kCounted;
      kernels_.extremes(call.x + first, std::min(kCounted, count - first), &least[part], &greatest[part]);
    });
    const float low = *std::min_element(least.begin(), least.end());
    const float high = *std::max_element(greatest.begin(), greatest.end());
    Quantized result;
    if (low < high) {
      result.scale = (high - low) / 255.f;
      const float zero = std::nearbyintf((0.f - low) / result.scale);
      result.zero = zero > 0.f ? static_cast<int32_t>(std::min(zero, 255.f)) : 0;  // 0 where low is -infinity
    }
    return result;
  }

  void run_int8(const Call& call) const {
    const Quantized by = quantized(call);
    const size_t size = static_cast<size_t>(weight_.inputs) * kPanel;
    uint8_t* panels = static_cast<uint8_t*>(panel_memory(call.panels * size));
    turned(call, [&](int64_t panel, int first, int last) {
      kernels_.turn_int8(x_of(call, panel), call.rows_of(panel), weight_.inputs, first, last, by, panels + panel * size);
    });
    multiplied(call, [&](int64_t panel, int chunk) {
      kernels_.multiply_int8(weight_, chunk, panels + panel * size, call.width_of(panel, kernels_.lanes),
                             call.rows_of(panel), by,
                             op_.activation, y_of(call, panel));
    });
  }

  const OrtApi& api_;
  const Operator& op_;
  const Kernels& kernels_;
  Weight weight_;
};

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Operator make(const char* name, bool blocked, bool is_int8, Activation activation) {
  Operator op{};
  op.version = kOrtApiVersion;
  op.GetName = [](const OrtCustomOp* op) { return self(op).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp* op) -> size_t { return self(op).is_int8 ? 5 : 4; };
  op.GetInputType = [](const OrtCustomOp* op, size_t index) -> int {
    return index == 1 && self(op).is_int8 ? kInt8 : index == 2 ? kUint16 : kFloat;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return kFloat; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };   // required
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };  // required
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };       // the provider's own
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, self(op).name, [&] { *kernel = new Node(*api, self(op), info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api(), node.name(), [&] { node.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.name = name;
  op.blocked = blocked;
  op.is_int8 = is_int8;
  op.activation = activation;
  return op;
}

OrtCustomOpDomain* make_domain(const OrtApi& api) {
  static const Operator operators[] = {
      make("SparseLinear", false, false, Activation::kNone),
      make("SparseLinearRelu", false, false, Activation::kRelu),
      make("SparseLinearGelu", false, false, Activation::kGelu),
      make("BlockSparseLinear", true, false, Activation::kNone),
      make("BlockSparseLinearRelu", true, false, Activation::kRelu),
      make("BlockSparseLinearGelu", true, false, Activation::kGelu),
      make("BlockSparseLinearInt8", true, true, Activation::kNone),
      make("BlockSparseLinearInt8Relu", true, true, Activation::kRelu),
      make("BlockSparseLinearInt8Gelu", true, true, Activation::kGelu),
  };
  OrtCustomOpDomain* domain = nullptr;
  must(api.CreateCustomOpDomain("sparseticket", &domain));
  for (const Operator& op : operators) must(api.CustomOpDomain_Add(domain, &op));
  return domain;
}

}  // namespace
}  // namespace sparseticket

// What SessionOptions.register_custom_ops_library calls.
EXPORTED OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace sparseticket;
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (!api) {
    const std::string message = std::string("sparseticket's operators need ONNX Runtime 1.17 or newer, and this is ") +
                                base->GetVersionString() + ": pip install --upgrade onnxruntime";
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  return guarded(*api, "sparseticket's operators", [&] {
    if (!chosen_kernels())
      throw std::invalid_argument(
          "SPARSETICKET_ISA names an instruction set that is unknown or not this CPU's: portable, avx2, avx512, "
          "avx512-vnni");
    static OrtCustomOpDomain* const domain = make_domain(*api);  // sessions may outlive anything that could free it
    must(api->AddCustomOpDomain(options, domain));
  });
}

// The instruction set in use; null where SPARSETICKET_ISA asks for what is not there.
EXPORTED const char* sparseticket_isa() {
  const sparseticket::Kernels* kernels = sparseticket::chosen_kernels();
  return kernels ? kernels->name : nullptr;
}
