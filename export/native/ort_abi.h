// The part of ONNX Runtime's C ABI that this library uses, declared by hand: its header is in no Python wheel.
// The ABI only ever grows at its end; slots and layouts below were read in the headers of API 23 and 29 and are equal
// there. Names are ONNX Runtime's own.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtCustomOp;
struct OrtApi;

constexpr uint32_t kOrtApiVersion = 17;  // the first with KernelContext_ParallelFor: ONNX Runtime 1.17

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum ElementType { kFloat = 1, kInt8 = 3, kUint16 = 4 };

struct OrtApi {
  void* slots[279];

  template <int slot, class Result, class... Arguments>
  Result call(Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(slots[slot])(arguments...);
  }

  OrtStatus* CreateStatus(OrtErrorCode code, const char* message) const {
    return call<0, OrtStatus*>(static_cast<int>(code), message);
  }
  OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** domain) const {
    return call<26, OrtStatus*>(name, domain);
  }
  OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return call<27, OrtStatus*>(domain, op);
  }
  OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<28, OrtStatus*>(options, domain);
  }
  OrtStatus* GetTensorMutableData(OrtValue* value, void** data) const { return call<51, OrtStatus*>(value, data); }
  OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, int* type) const {
    return call<60, OrtStatus*>(info, type);
  }
  OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* count) const {
    return call<61, OrtStatus*>(info, count);
  }
  OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dimensions, size_t count) const {
    return call<62, OrtStatus*>(info, dimensions, count);
  }
  OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) const {
    return call<65, OrtStatus*>(value, info);
  }
  OrtStatus* KernelInfoGetAttribute_float(const OrtKernelInfo* info, const char* name, float* value) const {
    return call<85, OrtStatus*>(info, name, value);
  }
  OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name, int64_t* value) const {
    return call<86, OrtStatus*>(info, name, value);
  }
  OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index, const OrtValue** value) const {
    return call<90, OrtStatus*>(context, index, value);
  }
  OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, size_t index, const int64_t* dimensions, size_t count,
                                     OrtValue** value) const {
    return call<91, OrtStatus*>(context, index, dimensions, count, value);
  }
  void ReleaseStatus(OrtStatus* status) const { call<93, void>(status); }
  void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const { call<99, void>(info); }
  OrtStatus* KernelInfoGetAttributeArray_int64(const OrtKernelInfo* info, const char* name, int64_t* values,
                                               size_t* count) const {
    return call<163, OrtStatus*>(info, name, values, count);
  }
  OrtStatus* KernelInfoGetConstantInput_tensor(const OrtKernelInfo* info, size_t index, int* is_constant,
                                               const OrtValue** value) const {
    return call<249, OrtStatus*>(info, index, is_constant, value);
  }
  OrtStatus* KernelContext_ParallelFor(const OrtKernelContext* context, void (*work)(void*, size_t), size_t count,
                                       size_t batches, void* argument) const {
    return call<274, OrtStatus*>(context, work, count, batches, argument);
  }
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(OrtCustomOp) == 208, "OrtCustomOp is part of ONNX Runtime's ABI");
