#pragma once

#include "node.h"

namespace sparseticket {

// y[..., outputs] = act(x[..., inputs] W^T + bias)
class Linear : public SparseNode {
 public:
  using SparseNode::SparseNode;
  void compute(OrtKernelContext* context) const override;

 private:
  struct Call;
  template <class Work>
  void turned(const Call& call, Work work) const;
  template <class Work>
  void multiplied(const Call& call, Work work) const;
  void run(const Call& call) const;
  void run_rows(const Call& call) const;
  Quantized quantized(OrtKernelContext* context, const float* x, int64_t count) const;
  void run_int8(const Call& call, Quantized by) const;
};

}  // namespace sparseticket
