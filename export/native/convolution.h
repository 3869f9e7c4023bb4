#pragma once

#include "node.h"

namespace sparseticket {

// y[n, outputs, ...] = act(conv(x[n, channels, height, width], W) + bias), no groups, no dilation. W's inputs are
// (channel, row of the kernel, column of the kernel), as W[outputs, channels, rows, columns] lies.
//
// The padded image of a channel is one line of floats. Its positions, run through in that order, are the rows of a
// linear layer: what a kernel's place (i, j) sees of 64 positions are 64 floats side by side, i lines and j floats
// further on. Positions in the padding are computed and thrown away; a stride s cuts the image in s * s images first.
class Convolution : public SparseNode {
 public:
  Convolution(const OrtApi& api, const Operator& op, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const override;

 private:
  struct Geometry;
  void lay_out(OrtKernelContext* context, const float* x, const Geometry& geometry, float* image) const;
  void fill(const float* image, const Geometry& geometry, int64_t panel, float* to) const;
  void keep(const float* sums, const Geometry& geometry, int64_t panel, int chunk, float* y) const;

  int rows_, columns_;  // of the kernel
  int stride_[2], pads_[4];
};

}  // namespace sparseticket
