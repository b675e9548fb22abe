// The ops `Tfcorr>DeformConv2D` and `Tfcorr>DeformConv2DGrad`: registration, shape functions, and the CPU's kernels.
// The checks are in deform_conv2d_geometry.h, the rest of the work in deform_conv2d_cpu.h.

#include <algorithm>
#include <cstdint>

#include "deform_conv2d_cpu.h"
#include "deform_conv2d_geometry.h"
#include "deform_conv2d_op.h"
#include "isa.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow_runtime.h"

namespace tfcorr {
namespace {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// ---------------------------------------------------------------------------------------------------------------
// Shape functions.

// Requires a known dimension to have the value that the others demand.
absl::Status Demand(InferenceContext* c, DimensionHandle dimension, int64_t value, const char* what) {
  if (c->ValueKnown(dimension) && c->Value(dimension) != value) {
    return InvalidArgument("deform_conv2d expects ", what, " = ", value, ", got ", c->Value(dimension), ": x ",
                           c->DebugString(c->input(0)), ", kernel ", c->DebugString(c->input(1)), ", offset ",
                           c->DebugString(c->input(2)), ", mask ", c->DebugString(c->input(3)), ", bias ",
                           c->DebugString(c->input(4)), ".");
  }
  return absl::OkStatus();
}

absl::Status OutputShape(InferenceContext* c, ShapeHandle* output) {
  DeformAttributes attributes;
  TF_RETURN_IF_ERROR(ReadAttributes(c, &attributes));
  ShapeHandle x, kernel, offset, mask, bias;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 4, &offset));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), attributes.has_mask ? 4 : 1, &mask));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &bias));

  DimensionHandle batch, channels, outputs = c->Dim(kernel, 3);
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 0), c->Dim(offset, 0), &batch));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(kernel, 2), &channels));
  DimensionHandle size[2] = {c->Dim(offset, 1), c->Dim(offset, 2)};
  if (attributes.has_bias) TF_RETURN_IF_ERROR(c->Merge(outputs, c->Dim(bias, 0), &outputs));
  if (attributes.has_mask) {
    TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(mask, 0), &batch));
    for (int axis = 0; axis < 2; ++axis) {
      TF_RETURN_IF_ERROR(c->Merge(size[axis], c->Dim(mask, axis + 1), &size[axis]));
    }
  }
  if (c->ValueKnown(channels) && c->Value(channels) % attributes.groups != 0) {
    return InvalidArgument("deform_conv2d expects channels divisible by deform_groups = ", attributes.groups,
                           ", got x ", c->DebugString(x), ".");
  }
  if (c->ValueKnown(c->Dim(kernel, 0)) && c->ValueKnown(c->Dim(kernel, 1))) {
    const int64_t samples =
        SaturatingProduct(attributes.groups, c->Value(c->Dim(kernel, 0)), c->Value(c->Dim(kernel, 1)));
    TF_RETURN_IF_ERROR(Demand(c, c->Dim(offset, 3), SaturatingProduct(2, samples),
                              "offset channels 2 * deform_groups * kh * kw"));
    if (attributes.has_mask) {
      TF_RETURN_IF_ERROR(Demand(c, c->Dim(mask, 3), samples, "mask channels deform_groups * kh * kw"));
    }
  }
  for (int axis = 0; axis < 2 && !attributes.free_grid; ++axis) {
    const DimensionHandle input = c->Dim(x, axis + 1), taps = c->Dim(kernel, axis);
    if (!c->ValueKnown(input) || !c->ValueKnown(taps)) continue;
    // The kernel refuses what does not.
    if (c->Value(taps) < 1 || !attributes.SideFits(axis, c->Value(input), c->Value(taps), 0)) continue;
    const int64_t wanted = attributes.OutputSize(axis, c->Value(input), c->Value(taps));
    TF_RETURN_IF_ERROR(Demand(c, size[axis], wanted, axis == 0 ? "offset height" : "offset width"));
    size[axis] = c->MakeDim(wanted);
  }
  *output = c->MakeShape({batch, size[0], size[1], outputs});
  return absl::OkStatus();
}

absl::Status ForwardShape(InferenceContext* c) {
  ShapeHandle output;
  TF_RETURN_IF_ERROR(OutputShape(c, &output));
  c->set_output(0, output);
  return absl::OkStatus();
}

absl::Status BackwardShape(InferenceContext* c) {
  ShapeHandle output, gradient;
  TF_RETURN_IF_ERROR(OutputShape(c, &output));
  TF_RETURN_IF_ERROR(c->Merge(c->input(5), output, &gradient));
  for (int i = 0; i < 5; ++i) c->set_output(i, c->input(i));
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------------------------
// Kernels.

class DeformConv2DOp : public DeformOp {
 public:
  using DeformOp::DeformOp;

  void Compute(OpKernelContext* context) override {
    DeformShape shape;
    OP_REQUIRES_OK(context, ReadShape(context, &shape));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShapeOf(shape), &output));
    if (output->NumElements() == 0) return;

    TensorflowRuntime runtime(context);
    DeformOnCpu<TensorflowRuntime> convolution(DeformKernelsFor(SelectIsa(), type()), shape, type(), &runtime);
    OP_REQUIRES(context, convolution.Forward(Inputs(context), output->data()), runtime.status());
  }
};

class DeformConv2DGradOp : public DeformOp {
 public:
  using DeformOp::DeformOp;

  void Compute(OpKernelContext* context) override {
    DeformShape shape;
    OP_REQUIRES_OK(context, ReadShape(context, &shape));
    Tensor* gradients[5];
    OP_REQUIRES_OK(context, AllocateGradients(context, shape, gradients));
    if (IsEmpty(shape)) {
      for (Tensor* gradient : gradients) {
        if (gradient->NumElements() > 0) std::fill_n(static_cast<char*>(gradient->data()), gradient->TotalBytes(), 0);
      }
      return;
    }

    TensorflowRuntime runtime(context);
    float* const bias_gradient = attributes().has_bias ? runtime.Floats(shape.out_channels) : nullptr;
    OP_REQUIRES_OK(context, runtime.status());
    DeformOnCpu<TensorflowRuntime> convolution(DeformKernelsFor(SelectIsa(), type()), shape, type(), &runtime);
    const DeformGradients targets = {gradients[0]->data(), gradients[1]->data(), gradients[2]->flat<float>().data(),
                                     gradients[3]->data(), bias_gradient};
    OP_REQUIRES(context, convolution.Backward(Inputs(context), context->input(5).data(), targets), runtime.status());
    for (int64_t o = 0; o < gradients[4]->NumElements(); ++o) {
      if (type() == kDeformFloat) {
        gradients[4]->flat<float>()(o) = bias_gradient[o];
      } else {
        gradients[4]->flat<tensorflow::bfloat16>()(o) = static_cast<tensorflow::bfloat16>(bias_gradient[o]);
      }
    }
  }
};

#define TFCORR_DEFORM_ATTRIBUTES                     \
  Attr("T: {float, bfloat16}")                       \
      .Attr("strides: list(int) = [1, 1]")           \
      .Attr("dilations: list(int) = [1, 1]")         \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'} = 'SAME'") \
      .Attr("explicit_padding: list(int) = []")      \
      .Attr("deform_groups: int >= 1 = 1")           \
      .Attr("free_grid: bool = false")               \
      .Attr("has_mask: bool = true")                 \
      .Attr("has_bias: bool = true")

REGISTER_OP("Tfcorr>DeformConv2D")
    .Input("x: T")
    .Input("kernel: T")
    .Input("offset: float")
    .Input("mask: T")
    .Input("bias: T")
    .Output("output: T")
    .TFCORR_DEFORM_ATTRIBUTES.SetShapeFn(ForwardShape)
    .Doc(R"doc(
Modulated deformable convolution: every tap of the kernel reads x bilinearly at a place of its own.

x: (batch, height, width, channels).
kernel: (kh, kw, channels, outputs).
offset: (batch, out height, out width, deform_groups * kh * kw * 2), last axis (group, ky, kx, [dy, dx]), in pixels.
mask: (batch, out height, out width, deform_groups * kh * kw), a factor of each sample; empty without has_mask.
bias: (outputs); empty without has_bias.
output: (batch, out height, out width, outputs).
strides: along y and x.
dilations: along y and x.
explicit_padding: top, bottom, left, right, with padding EXPLICIT.
free_grid: the output has the size of offset, whatever the size of x.
)doc");

REGISTER_OP("Tfcorr>DeformConv2DGrad")
    .Input("x: T")
    .Input("kernel: T")
    .Input("offset: float")
    .Input("mask: T")
    .Input("bias: T")
    .Input("output_gradient: T")
    .Output("x_gradient: T")
    .Output("kernel_gradient: T")
    .Output("offset_gradient: float")
    .Output("mask_gradient: T")
    .Output("bias_gradient: T")
    .TFCORR_DEFORM_ATTRIBUTES.SetShapeFn(BackwardShape)
    .Doc(R"doc(
Gradients of Tfcorr>DeformConv2D for all of its inputs.
)doc");

REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2D").Device(tensorflow::DEVICE_CPU), DeformConv2DOp);
REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2DGrad").Device(tensorflow::DEVICE_CPU), DeformConv2DGradOp);

}  // namespace
}  // namespace tfcorr
