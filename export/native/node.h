// What the operators share: how a node's constants are read and packed, how errors reach ONNX Runtime, its threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"
#include "weight.h"

namespace sparseticket {

enum class Kind { kLinear, kConvolution, kAddLayerNorm, kAttention };

struct Operator : OrtCustomOp {
  const char* name;
  Kind kind;
  bool blocked, is_int8;
  Activation activation;
};

// Thrown with what ONNX Runtime itself reported.
struct Failure {
  OrtStatus* status;
};

inline void must(OrtStatus* status) {
  if (status) throw Failure{status};
}

struct Tensor {
  int type = 0;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  std::vector<float> copy;  // of an input that begins askew
};

Tensor read(const OrtApi& api, const OrtValue* value);
std::vector<int64_t> integers(const OrtApi& api, const OrtKernelInfo* info, const char* name);

// A node of a session.
class Node {
 public:
  Node(const OrtApi& api, const Operator& op) : api_(api), op_(op), kernels_(*chosen_kernels()) {}
  virtual ~Node() = default;
  virtual void compute(OrtKernelContext* context) const = 0;

  const OrtApi& api() const { return api_; }
  const char* name() const { return op_.name; }

 protected:
  Tensor input(OrtKernelContext* context, size_t index = 0) const;  // checked to be float
  float* output(OrtKernelContext* context, const std::vector<int64_t>& shape) const;

  // Calls work(0) ... work(count - 1) on ONNX Runtime's threads.
  template <class Work>
  void parallel(OrtKernelContext* context, int64_t count, Work work) const {
    std::atomic<bool> no_memory{false};  // nothing may be thrown through ONNX Runtime
    auto guarded = [&](size_t i) {
      try {
        work(static_cast<int64_t>(i));
      } catch (const std::bad_alloc&) {
        no_memory = true;
      }
    };
    must(api_.KernelContext_ParallelFor(
        context, [](void* own, size_t i) { (*static_cast<decltype(guarded)*>(own))(i); }, static_cast<size_t>(count),
        static_cast<size_t>(count), &guarded));
    if (no_memory) throw std::bad_alloc();
  }

  const OrtApi& api_;
  const Operator& op_;
  const Kernels& kernels_;
};

// A node with a sparse weight. Its making throws std::invalid_argument where the file holds what cannot be.
class SparseNode : public Node {
 public:
  SparseNode(const OrtApi& api, const Operator& op, const OrtKernelInfo* info);

 protected:
  Weight weight_;
};

}  // namespace sparseticket
