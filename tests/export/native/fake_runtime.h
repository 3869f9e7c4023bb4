// As much of ONNX Runtime as the operators call. Every tensor lies in memory of exactly its size, so that
// AddressSanitizer sees the first byte read or written outside of it, and any call can be made to fail.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.h"

struct OrtStatus {
  std::string message;
};

struct OrtValue {
  int type = kFloat;
  std::vector<int64_t> shape;
  bool aligned = true;  // data of a file may begin at any byte

  OrtValue(int type, std::vector<int64_t> shape) : type(type), shape(std::move(shape)) { resize(); }
  OrtValue(const OrtValue&) = delete;
  OrtValue(OrtValue&& other)
      : type(other.type),
        shape(std::move(other.shape)),
        aligned(other.aligned),
        memory_(other.memory_),
        size_(other.size_) {
    other.memory_ = nullptr;
  }
  ~OrtValue() { std::free(memory_); }

  int64_t count() const {
    int64_t product = 1;
    if (std::count(shape.begin(), shape.end(), 0)) return 0;  // beside it other dimensions may be as large as they like
    for (int64_t dimension : shape) product *= dimension;
    return product;
  }
  size_t bytes() const { return count() * element_size(type); }
  char* data() const { return memory_ + !aligned; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }

  std::vector<float> floats() const {
    std::vector<float> copy(count());
    if (!copy.empty()) std::memcpy(copy.data(), data(), bytes());
    return copy;
  }

  // Fresh memory for type, shape and alignment as they are now; keeps what fits, and repeats 0xA5 behind it.
  void resize() {
    char* old = memory_;
    const size_t kept = old ? std::min(size_, bytes()) : 0;
    memory_ = static_cast<char*>(std::malloc(bytes() + !aligned));
    std::memset(data(), 0xA5, bytes());
    if (kept) std::memcpy(data(), old + was_offset_, kept);
    size_ = bytes();
    was_offset_ = !aligned;
    std::free(old);
  }

  static size_t element_size(int type) {
    switch (type) {
      case 2:
      case 3:
      case 9:
        return 1;  // uint8, int8, bool
      case 4:
      case 5:
      case 10:
        return 2;  // uint16, int16, float16
      case 7:
      case 11:
      case 13:
        return 8;  // int64, double, uint64
      default:
        return 4;
    }
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
  size_t was_offset_ = 0;
};

struct OrtTensorTypeAndShapeInfo {
  const OrtValue& value;
};

// A node: what a file says of it. Input 0 is x, which no file holds.
struct OrtKernelInfo {
  std::map<std::string, std::vector<int64_t>> attributes;
  std::vector<OrtValue> inputs;
  std::vector<bool> constant;
  float number = 0;  // AddLayerNorm's epsilon, MaskedAttention's scale
};

struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;  // x, or all of a node without a sparse weight
  std::vector<OrtValue> y;
  bool threads;  // whether a second thread takes half of the tasks
};

struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};

struct OrtSessionOptions {
  OrtCustomOpDomain* domain = nullptr;
};

namespace fake {

inline int calls_until_failure = -1;  // the call of the API that fails, counted from here; -1: none
inline int infos_held = 0;            // of OrtTensorTypeAndShapeInfo: 0 when a call is over
inline bool is_too_old = false;       // an ONNX Runtime that lacks the version asked for

inline OrtStatus* failed() {
  return calls_until_failure >= 0 && calls_until_failure-- == 0 ? new OrtStatus{"injected failure"} : nullptr;
}

inline OrtStatus* create_status(int, const char* message) { return new OrtStatus{message}; }

inline OrtStatus* create_domain(const char*, OrtCustomOpDomain** domain) {
  static OrtCustomOpDomain only;
  *domain = &only;
  return nullptr;
}

inline OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  domain->operators.push_back(op);
  return nullptr;
}

inline OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  options->domain = domain;
  return nullptr;
}

inline OrtStatus* data_of(OrtValue* value, void** data) {
  if (OrtStatus* status = failed()) return status;
  *data = value->data();
  return nullptr;
}

inline OrtStatus* info_of(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) {
  if (OrtStatus* status = failed()) return status;
  ++infos_held;
  *info = new OrtTensorTypeAndShapeInfo{*value};
  return nullptr;
}

inline void release_info(OrtTensorTypeAndShapeInfo* info) {
  --infos_held;
  delete info;
}

inline OrtStatus* type_of(const OrtTensorTypeAndShapeInfo* info, int* type) {
  if (OrtStatus* status = failed()) return status;
  *type = info->value.type;
  return nullptr;
}

inline OrtStatus* rank_of(const OrtTensorTypeAndShapeInfo* info, size_t* rank) {
  if (OrtStatus* status = failed()) return status;
  *rank = info->value.shape.size();
  return nullptr;
}

inline OrtStatus* shape_of(const OrtTensorTypeAndShapeInfo* info, int64_t* shape, size_t count) {
  if (OrtStatus* status = failed()) return status;
  std::copy_n(info->value.shape.begin(), std::min(count, info->value.shape.size()), shape);
  return nullptr;
}

inline OrtStatus* integer(const OrtKernelInfo* info, const char* name, int64_t* value) {
  if (OrtStatus* status = failed()) return status;
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end() || found->second.size() != 1) return new OrtStatus{"no such attribute"};
  *value = found->second[0];
  return nullptr;
}

inline OrtStatus* number(const OrtKernelInfo* info, const char*, float* value) {
  if (OrtStatus* status = failed()) return status;
  *value = info->number;
  return nullptr;
}

inline OrtStatus* integers(const OrtKernelInfo* info, const char* name, int64_t* values, size_t* count) {
  if (OrtStatus* status = failed()) return status;
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end()) return new OrtStatus{"no such attribute"};
  const size_t room = *count;
  *count = found->second.size();
  if (values && room < *count) return new OrtStatus{"the attribute is longer than the room for it"};
  if (values) std::copy(found->second.begin(), found->second.end(), values);
  return nullptr;
}

inline OrtStatus* constant_input(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** value) {
  if (OrtStatus* status = failed()) return status;
  if (index >= info->inputs.size()) return new OrtStatus{"no such input"};
  *is_constant = info->constant[index];
  *value = *is_constant ? &info->inputs[index] : nullptr;
  return nullptr;
}

inline OrtStatus* get_input(const OrtKernelContext* context, size_t index, const OrtValue** value) {
  if (OrtStatus* status = failed()) return status;
  *value = index < context->inputs.size() ? context->inputs[index] : nullptr;
  return nullptr;
}

inline OrtStatus* get_output(OrtKernelContext* context, size_t, const int64_t* shape, size_t count, OrtValue** value) {
  if (OrtStatus* status = failed()) return status;
  context->y.emplace_back(kFloat, std::vector<int64_t>(shape, shape + count));
  std::memset(context->y.back().data(), 0xFF, context->y.back().bytes());  // NaN: what stays unwritten is seen
  *value = &context->y.back();
  return nullptr;
}

inline OrtStatus* parallel_for(const OrtKernelContext* context, void (*work)(void*, size_t), size_t count, size_t,
                               void* argument) {
  if (OrtStatus* status = failed()) return status;
  const size_t half = context->threads ? count / 2 : 0;
  std::thread other([=] {
    for (size_t i = 0; i < half; ++i) work(argument, i);
  });
  for (size_t i = count; i-- > half;) work(argument, i);
  other.join();
  return nullptr;
}

inline const OrtApi* api() {
  static const OrtApi table = [] {
    OrtApi filled;
    for (void*& slot : filled.slots) slot = reinterpret_cast<void*>(&std::abort);  // what must not be called
    const auto set = [&filled](int slot, auto* function) { filled.slots[slot] = reinterpret_cast<void*>(function); };
    set(0, create_status), set(26, create_domain), set(27, add_operator), set(28, add_domain), set(51, data_of);
    set(60, type_of), set(61, rank_of), set(62, shape_of), set(65, info_of), set(85, number), set(86, integer),
        set(90, get_input);
    set(91, get_output), set(99, release_info), set(163, integers), set(249, constant_input), set(274, parallel_for);
    return filled;
  }();
  return &table;
}

inline const OrtApiBase base = {
    [](uint32_t version) -> const OrtApi* { return is_too_old && version > 1 ? nullptr : api(); },
    [] { return "1.16.3"; },
};

}  // namespace fake
