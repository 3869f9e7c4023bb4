// The operators as ONNX Runtime sees them: their names, types and registration.

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "add_layer_norm.h"
#include "attention.h"
#include "convolution.h"
#include "linear.h"
#include "node.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace sparseticket {
namespace {

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

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Node* make_node(const OrtApi& api, const Operator& op, const OrtKernelInfo* info) {
  switch (op.kind) {
    case Kind::kConvolution: return new Convolution(api, op, info);
    case Kind::kAddLayerNorm: return new AddLayerNorm(api, op, info);
    case Kind::kAttention: return new Attention(api, op, info);
    default: return new Linear(api, op, info);
  }
}

enum Values { kSingle, kBlocks, kInt8Blocks };

Operator make(const char* name, Kind kind, Values values, Activation activation) {
  Operator op{};
  op.version = kOrtApiVersion;
  op.GetName = [](const OrtCustomOp* op) { return self(op).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp* op) -> size_t { return self(op).is_int8 ? 5 : 4; };
  op.GetInputType = [](const OrtCustomOp* op, size_t index) -> int {
    if (self(op).kind == Kind::kAddLayerNorm || self(op).kind == Kind::kAttention) return kFloat;
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
    return guarded(*api, self(op).name, [&] { *kernel = make_node(*api, self(op), info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api(), node.name(), [&] { node.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.name = name;
  op.kind = kind;
  op.blocked = values != kSingle;
  op.is_int8 = values == kInt8Blocks;
  op.activation = activation;
  return op;
}

OrtCustomOpDomain* make_domain(const OrtApi& api) {
  static const Operator operators[] = {
      make("SparseLinear", Kind::kLinear, kSingle, Activation::kNone),
      make("SparseLinearRelu", Kind::kLinear, kSingle, Activation::kRelu),
      make("SparseLinearGelu", Kind::kLinear, kSingle, Activation::kGelu),
      make("BlockSparseLinear", Kind::kLinear, kBlocks, Activation::kNone),
      make("BlockSparseLinearRelu", Kind::kLinear, kBlocks, Activation::kRelu),
      make("BlockSparseLinearGelu", Kind::kLinear, kBlocks, Activation::kGelu),
      make("BlockSparseLinearInt8", Kind::kLinear, kInt8Blocks, Activation::kNone),
      make("BlockSparseLinearInt8Relu", Kind::kLinear, kInt8Blocks, Activation::kRelu),
      make("BlockSparseLinearInt8Gelu", Kind::kLinear, kInt8Blocks, Activation::kGelu),
      make("SparseConv", Kind::kConvolution, kSingle, Activation::kNone),
      make("SparseConvRelu", Kind::kConvolution, kSingle, Activation::kRelu),
      make("BlockSparseConv", Kind::kConvolution, kBlocks, Activation::kNone),
      make("BlockSparseConvRelu", Kind::kConvolution, kBlocks, Activation::kRelu),
      make("AddLayerNorm", Kind::kAddLayerNorm, kSingle, Activation::kNone),
      make("MaskedAttention", Kind::kAttention, kSingle, Activation::kNone),
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
