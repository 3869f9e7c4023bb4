#pragma once

#include "node.h"

namespace sparseticket {

// y[n, rows, heads * size] = softmax(q k^T * scale + mask) v, head by head; q as y, k and v [n, keys, heads * size],
// mask [n, 1, rows, keys]. In place of four transpositions, two products, and passes over the scores between them.
class Attention : public Node {
 public:
  Attention(const OrtApi& api, const Operator& op, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const override;

 private:
  int64_t heads_ = 0, size_ = 0;
  float scale_ = 0;
};

}  // namespace sparseticket
