// What the arguments of a deformable convolution must be like, and the sizes that follow from them.
//
// Shared by the ops for CPU and GPU, by their shape functions, and by the stand-alone tests: it knows nothing of
// TensorFlow. No arithmetic here overflows, whatever the sizes: a tensor without values may have any.
#ifndef TFCORR_CUSTOM_OPS_DEFORM_CONV2D_GEOMETRY_H_
#define TFCORR_CUSTOM_OPS_DEFORM_CONV2D_GEOMETRY_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/deform_conv2d.h"

namespace tfcorr {

// Positions are float32, which counts whole pixels up to here.
constexpr int64_t kMaxSide = int64_t{1} << 24;

// More values than any one array may have that is derived from the arguments (4 TB): everything counted in values,
// with the few factors that the kernels add, then fits into an int64.
constexpr int64_t kMaxValues = int64_t{1} << 40;

// The product of numbers >= 0, or the largest int64 where that is less.
template <class... Factors>
inline int64_t SaturatingProduct(Factors... factors) {
  int64_t product = 1;
  bool overflows = false, zero = false;
  for (const int64_t factor : {static_cast<int64_t>(factors)...}) {
    zero = zero || factor == 0;
    overflows = overflows || __builtin_mul_overflow(product, factor, &product);
  }
  if (zero) return 0;
  return overflows ? std::numeric_limits<int64_t>::max() : product;
}

// The op's attributes; pairs are (y, x).
struct DeformAttributes {
  std::vector<int64_t> strides = {1, 1}, dilations = {1, 1};
  std::vector<int64_t> explicit_padding;  // top, bottom, left, right, with padding EXPLICIT
  std::string padding = "SAME";           // or VALID, EXPLICIT
  int64_t groups = 1;
  bool free_grid = false, has_mask = true, has_bias = true;

  // "" if the attributes can be used, else what would have been expected, and what was seen.
  std::string Misfit() const {
    for (const auto& [name, pair] : {std::pair<const char*, const std::vector<int64_t>&>{"strides", strides},
                                     std::pair<const char*, const std::vector<int64_t>&>{"dilations", dilations}}) {
      if (pair.size() == 2 && std::min(pair[0], pair[1]) >= 1 && std::max(pair[0], pair[1]) <= kMaxSide) continue;
      std::string values;
      for (const int64_t value : pair) values += (values.empty() ? "" : ", ") + std::to_string(value);
      return std::string("two ") + name + " (y, x) in [1, " + std::to_string(kMaxSide) + "], got (" + values + ")";
    }
    if (padding != "SAME" && padding != "VALID" && padding != "EXPLICIT") {
      return "padding SAME, VALID or EXPLICIT, got " + padding;
    }
    if (explicit_padding.size() != (padding == "EXPLICIT" ? 4u : 0u)) {
      return "explicit_padding (top, bottom, left, right) with padding EXPLICIT and no explicit_padding otherwise, "
             "got " + std::to_string(explicit_padding.size()) + " numbers with padding " + padding;
    }
    for (const int64_t side : explicit_padding) {
      if (side >= 0 && side <= kMaxSide) continue;
      return "every explicit_padding in [0, " + std::to_string(kMaxSide) + "], got " + std::to_string(side);
    }
    return groups >= 1 ? "" : "at least one of deform_groups, got " + std::to_string(groups);
  }

  // Zeros before the first and behind the last row (axis 0) or column (axis 1) of an input of `size`, for a kernel of
  // so many taps. For sides that SideFits has let through.
  void PaddingOf(int axis, int64_t size, int64_t taps, int64_t* before, int64_t* behind) const {
    *before = *behind = 0;
    if (padding == "EXPLICIT") {
      *before = explicit_padding[2 * axis];
      *behind = explicit_padding[2 * axis + 1];
    } else if (padding == "SAME") {
      const int64_t extent = (taps - 1) * dilations[axis] + 1;
      // A free grid has no input size to go by; it is padded as an input of (output size * stride) would be.
      const int64_t steps = (size + strides[axis] - 1) / strides[axis];
      const int64_t last = free_grid ? -strides[axis] : (steps - 1) * strides[axis] - size;
      const int64_t both = std::max<int64_t>(last + extent, 0);
      *before = both / 2;
      *behind = both - *before;
    }
  }

  // Output size along an axis; 0 if the kernel does not fit.
  int64_t OutputSize(int axis, int64_t size, int64_t taps) const {
    int64_t before, behind;
    PaddingOf(axis, size, taps, &before, &behind);
    const int64_t room = size + before + behind - ((taps - 1) * dilations[axis] + 1);
    return room < 0 ? 0 : room / strides[axis] + 1;
  }

  // Whether positions along an axis can be counted: for the input's size, taps, and the output's size.
  bool SideFits(int axis, int64_t size, int64_t taps, int64_t out_size) const {
    return size <= kMaxSide && SaturatingProduct(taps, dilations[axis]) <= kMaxSide &&
           SaturatingProduct(out_size, strides[axis]) <= kMaxSide;
  }
};

using Dimensions = std::vector<int64_t>;

// Checks the shapes of the five inputs against each other and fills in the sizes. Returns "" if they fit, else what
// would have been expected. The attributes must be ones without a Misfit.
inline std::string FitDeformShape(const DeformAttributes& attributes, const Dimensions& x, const Dimensions& kernel,
                                  const Dimensions& offset, const Dimensions& mask, const Dimensions& bias,
                                  DeformShape* shape) {
  if (x.size() != 4) return "x (batch, height, width, channels)";
  if (kernel.size() != 4) return "kernel (height, width, channels, outputs)";
  if (offset.size() != 4) return "offset (batch, out height, out width, deform_groups * kh * kw * 2)";
  shape->batch = x[0];
  shape->height = x[1];
  shape->width = x[2];
  shape->channels = x[3];
  shape->out_height = offset[1];
  shape->out_width = offset[2];
  shape->kernel_height = kernel[0];
  shape->kernel_width = kernel[1];
  shape->out_channels = kernel[3];
  shape->groups = attributes.groups;
  shape->stride_y = attributes.strides[0];
  shape->stride_x = attributes.strides[1];
  shape->dilation_y = attributes.dilations[0];
  shape->dilation_x = attributes.dilations[1];
  if (kernel[2] != shape->channels) return "a kernel for the channels of x";
  if (shape->kernel_height < 1 || shape->kernel_width < 1) return "a kernel of at least one tap";
  if (shape->channels < 1) return "at least one channel";
  if (shape->channels % shape->groups != 0) return "channels divisible by deform_groups";
  if (offset[0] != shape->batch) return "the same batch in x and offset";
  for (int axis = 0; axis < 2; ++axis) {
    if (!attributes.SideFits(axis, x[axis + 1], kernel[axis], offset[axis + 1])) {
      return "sides of at most 16777216 pixels, which float32 positions can count";
    }
  }
  const int64_t samples = SaturatingProduct(shape->groups, shape->kernel_height, shape->kernel_width);
  if (samples > kMaxValues || offset[3] != 2 * samples) return "2 * deform_groups * kh * kw offset channels";
  if (attributes.has_mask ? mask != Dimensions{shape->batch, shape->out_height, shape->out_width, samples}
                          : mask != Dimensions{0}) {
    return attributes.has_mask
               ? "a mask (batch, out height, out width, deform_groups * kh * kw) on the grid of offset"
               : "an empty vector for the mask that is not there";
  }
  if (bias != Dimensions{attributes.has_bias ? shape->out_channels : 0}) {
    return attributes.has_bias ? "a bias for the outputs of the kernel"
                               : "an empty vector for the bias that is not there";
  }

  int64_t behind;
  attributes.PaddingOf(0, shape->height, shape->kernel_height, &shape->pad_top, &behind);
  attributes.PaddingOf(1, shape->width, shape->kernel_width, &shape->pad_left, &behind);
  if (!attributes.free_grid) {
    const int64_t height = attributes.OutputSize(0, shape->height, shape->kernel_height);
    const int64_t width = attributes.OutputSize(1, shape->width, shape->kernel_width);
    if (shape->out_height != height || shape->out_width != width) {
      return "offset on the output's grid of " + std::to_string(height) + " x " + std::to_string(width) +
             " (or a free grid, by output_size)";
    }
  }

  // An image without pixels is all border, whatever its other side: it must not take memory for it.
  if (shape->height == 0 || shape->width == 0) shape->height = shape->width = 0;
  // The kernels fill the channels of a group up to a multiple of 8, and give an image a border of 3 pixels.
  const int64_t filled = SaturatingProduct(shape->channels / shape->groups / 8 + 1, 8);
  const int64_t pixels = SaturatingProduct(shape->batch, shape->out_height, shape->out_width);
  for (const int64_t values : {
           SaturatingProduct(shape->batch, shape->height + 3, shape->width + 3, shape->groups, filled),
           SaturatingProduct(samples, filled, std::min(shape->out_channels, kMaxValues) + 32),
           SaturatingProduct(pixels, samples),
           SaturatingProduct(pixels, shape->out_channels),
       }) {
    if (values > kMaxValues) return "images, samples and a kernel of at most 2^40 values each";
  }
  return "";
}

// Whether there is nothing to compute: the output has no values, and every gradient is zero.
inline bool IsEmpty(const DeformShape& shape) {
  return shape.batch == 0 || shape.out_height == 0 || shape.out_width == 0 || shape.out_channels == 0;
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_DEFORM_CONV2D_GEOMETRY_H_
