#include "node.h"

#include <cstring>
#include <memory>
#include <stdexcept>

namespace sparseticket {
namespace {

Tensor constant(const OrtApi& api, const OrtKernelInfo* info, size_t index, ElementType type, const char* name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  must(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant || !value) throw std::invalid_argument(std::string(name) + " must be constant (an initializer)");
  Tensor tensor = read(api, value);
  if (tensor.type != type) throw std::invalid_argument(std::string(name) + " has another type than the operator takes");
  return tensor;
}

}  // namespace

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

std::vector<int64_t> integers(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
  int64_t values[16];
  size_t count = 16;
  must(api.KernelInfoGetAttributeArray_int64(info, name, values, &count));
  return {values, values + count};
}

SparseNode::SparseNode(const OrtApi& api, const Operator& op, const OrtKernelInfo* info) : Node(api, op) {
  Stored stored;
  const std::vector<int64_t> shape = integers(api, info, "shape");
  if (shape.size() != 2) throw std::invalid_argument("shape must be [inputs, outputs]");
  stored.inputs = shape[0];
  stored.outputs = shape[1];
  must(api.KernelInfoGetAttribute_int64(info, "axis", &stored.axis));
  const std::vector<int64_t> offsets = op.blocked ? integers(api, info, "offsets") : std::vector<int64_t>{0};
  stored.block = static_cast<int64_t>(offsets.size());
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
  for (int i = 0; i < weight_.block; ++i)
    if (offsets[i] != (stored.axis == 1 ? i : 0))
      throw std::invalid_argument("offsets must be 0, 1, ... on axis 1 and zeros on axis 0");
}

Tensor Node::input(OrtKernelContext* context, size_t index) const {
  const OrtValue* value = nullptr;
  must(api_.KernelContext_GetInput(context, index, &value));
  if (!value) throw std::invalid_argument("an input is missing");
  Tensor x = read(api_, value);
  if (x.type != kFloat) throw std::invalid_argument("inputs must be float");
  if (reinterpret_cast<uintptr_t>(x.data) % alignof(float)) {  // a constant beside the model may begin at any byte
    size_t count = 1;
    for (int64_t size : x.shape) count *= static_cast<size_t>(size);
    x.copy.resize(count);
    if (count) std::memcpy(x.copy.data(), x.data, count * sizeof(float));
    x.data = x.copy.data();
  }
  return x;
}

float* Node::output(OrtKernelContext* context, const std::vector<int64_t>& shape) const {
  OrtValue* value = nullptr;
  must(api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  must(api_.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

}  // namespace sparseticket
