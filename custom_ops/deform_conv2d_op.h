// What the kernels of `Tfcorr>DeformConv2D` and its gradient for CPU and GPU have in common: reading attributes,
// checking shapes, allocating outputs.
#ifndef TFCORR_CUSTOM_OPS_DEFORM_CONV2D_OP_H_
#define TFCORR_CUSTOM_OPS_DEFORM_CONV2D_OP_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "deform_conv2d_cpu.h"
#include "deform_conv2d_geometry.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow_runtime.h"

namespace tfcorr {

template <class... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Reads and checks the attributes; `Context` is an InferenceContext or an OpKernelConstruction.
template <class Context>
absl::Status ReadAttributes(Context* context, DeformAttributes* attributes) {
  // An InferenceContext appends to what is there.
  attributes->strides.clear();
  attributes->dilations.clear();
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &attributes->strides));
  TF_RETURN_IF_ERROR(context->GetAttr("dilations", &attributes->dilations));
  TF_RETURN_IF_ERROR(context->GetAttr("padding", &attributes->padding));
  TF_RETURN_IF_ERROR(context->GetAttr("explicit_padding", &attributes->explicit_padding));
  TF_RETURN_IF_ERROR(context->GetAttr("deform_groups", &attributes->groups));
  TF_RETURN_IF_ERROR(context->GetAttr("free_grid", &attributes->free_grid));
  TF_RETURN_IF_ERROR(context->GetAttr("has_mask", &attributes->has_mask));
  TF_RETURN_IF_ERROR(context->GetAttr("has_bias", &attributes->has_bias));
  const std::string misfit = attributes->Misfit();
  if (misfit.empty()) return absl::OkStatus();
  return InvalidArgument("deform_conv2d expects ", misfit, ".");
}

class DeformOp : public tensorflow::OpKernel {
 public:
  explicit DeformOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, &attributes_));
    tensorflow::DataType type;
    OP_REQUIRES_OK(context, context->GetAttr("T", &type));
    type_ = type == tensorflow::DT_FLOAT ? kDeformFloat : kDeformBfloat16;
  }

 protected:
  const DeformAttributes& attributes() const { return attributes_; }
  DeformType type() const { return type_; }

  // Checks the five inputs and fills in the sizes.
  absl::Status ReadShape(tensorflow::OpKernelContext* context, DeformShape* shape) const {
    const auto dimensions = [&](int input) { return DimensionsOf(context->input(input).shape()); };
    const std::string misfit = FitDeformShape(attributes_, dimensions(0), dimensions(1), dimensions(2), dimensions(3),
                                              dimensions(4), shape);
    if (misfit.empty()) return absl::OkStatus();
    const auto seen = [&](int input) { return context->input(input).shape().DebugString(); };
    return InvalidArgument("deform_conv2d expects ", misfit, "; got x ", seen(0), ", kernel ", seen(1), ", offset ",
                           seen(2), ", mask ", seen(3), ", bias ", seen(4), ", deform_groups ", attributes_.groups,
                           ".");
  }

  static tensorflow::TensorShape OutputShapeOf(const DeformShape& shape) {
    return tensorflow::TensorShape({shape.batch, shape.out_height, shape.out_width, shape.out_channels});
  }

  // Checks the output's gradient (the sixth input), and allocates those of the other five.
  static absl::Status AllocateGradients(tensorflow::OpKernelContext* context, const DeformShape& shape,
                                        tensorflow::Tensor** gradients) {
    const tensorflow::TensorShape wanted = OutputShapeOf(shape), &seen = context->input(5).shape();
    if (seen != wanted) {
      return InvalidArgument("deform_conv2d expects an output gradient of shape ", wanted.DebugString(), ", got ",
                             seen.DebugString(), ".");
    }
    for (int i = 0; i < 5; ++i) {
      TF_RETURN_IF_ERROR(context->allocate_output(i, context->input(i).shape(), &gradients[i]));
    }
    return absl::OkStatus();
  }

  DeformInputs Inputs(tensorflow::OpKernelContext* context) const {
    return {context->input(0).data(), context->input(1).data(), context->input(2).flat<float>().data(),
            attributes_.has_mask ? context->input(3).data() : nullptr,
            attributes_.has_bias ? context->input(4).data() : nullptr};
  }

 private:
  DeformAttributes attributes_;
  DeformType type_;
};

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_DEFORM_CONV2D_OP_H_
