#pragma once

#include "node.h"

namespace sparseticket {

// y = LayerNormalization(a + b) over the last dimension. Half of what a network of sparse layers would otherwise wait
// for: ONNX Runtime 1.32 takes 0.5 ms for 128 x 768, a linear layer of that size at 95 % zeros 0.12 ms.
class AddLayerNorm : public Node {
 public:
  AddLayerNorm(const OrtApi& api, const Operator& op, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const override;

 private:
  float epsilon_ = 0;
};

}  // namespace sparseticket
