// TensorFlow's kernels of both ops for GPUs: TensorFlow's stream, its allocator, the checks of the CPU's kernels, and
// the launches of deform_conv2d.cu and match_patches.cu. Compiled only with GOOGLE_CUDA (Bazel: --config=cuda).

#if GOOGLE_CUDA

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/deform_conv2d_gpu.h"
#include "cuda/index.h"
#include "cuda/match_patches_gpu.h"
#include "deform_conv2d_geometry.h"
#include "deform_conv2d_op.h"
#include "match_patches_geometry.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/determinism.h"
#include "tensorflow_runtime.h"
#include "xla/stream_executor/stream.h"

namespace tfcorr {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

cudaStream_t StreamOf(OpKernelContext* context) {
  return static_cast<cudaStream_t>(context->op_device_context()->stream()->platform_specific_handle().stream);
}

absl::Status Launched(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(op, " could not be launched on the GPU: ", cudaGetErrorString(error), "."));
}

absl::Status Workspace(OpKernelContext* context, int64_t bytes, Tensor* memory) {
  return context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes > 0 ? bytes : 1}), memory);
}

absl::Status CheckFits(const DeformShape& shape) {
  if (gpu::FitsGpu(shape)) return absl::OkStatus();
  return InvalidArgument("deform_conv2d expects fewer than 2^31 output pixels, 65536 samples a pixel and 2^21 outputs "
                         "on a GPU.");
}

class DeformConv2DGpuOp : public DeformOp {
 public:
  using DeformOp::DeformOp;

  void Compute(OpKernelContext* context) override {
    DeformShape shape;
    OP_REQUIRES_OK(context, ReadShape(context, &shape));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShapeOf(shape), &output));
    if (output->NumElements() == 0) return;
    OP_REQUIRES_OK(context, CheckFits(shape));
    Tensor workspace;
    OP_REQUIRES_OK(context, Workspace(context, gpu::DeformForwardWorkspace(shape, type()), &workspace));
    const DeformInputs in = Inputs(context);
    OP_REQUIRES_OK(context, Launched("deform_conv2d", gpu::DeformForward(shape, type(), in.x, in.kernel, in.offset,
                                                                         in.mask, in.bias, output->data(),
                                                                         workspace.data(), StreamOf(context))));
  }
};

class DeformConv2DGradGpuOp : public DeformOp {
 public:
  explicit DeformConv2DGradGpuOp(OpKernelConstruction* context) : DeformOp(context) {
    OP_REQUIRES(context, !tensorflow::OpDeterminismRequired(),
                absl::UnimplementedError("deform_conv2d has no deterministic gradient of x on a GPU: it is summed "
                                         "atomically. Run it on the CPU, or with implementation=\"reference\"."));
  }

  void Compute(OpKernelContext* context) override {
    DeformShape shape;
    OP_REQUIRES_OK(context, ReadShape(context, &shape));
    Tensor* gradients[5];
    OP_REQUIRES_OK(context, AllocateGradients(context, shape, gradients));
    if (IsEmpty(shape)) {
      for (Tensor* gradient : gradients) {
        if (gradient->NumElements() == 0) continue;
        OP_REQUIRES_OK(context, Launched("deform_conv2d", cudaMemsetAsync(gradient->data(), 0, gradient->TotalBytes(),
                                                                          StreamOf(context))));
      }
      return;
    }
    OP_REQUIRES_OK(context, CheckFits(shape));
    Tensor workspace;
    OP_REQUIRES_OK(context, Workspace(context, gpu::DeformBackwardWorkspace(shape, type()), &workspace));
    const DeformInputs in = Inputs(context);
    void* const bias_gradient = attributes().has_bias ? gradients[4]->data() : nullptr;
    OP_REQUIRES_OK(context,
                   Launched("deform_conv2d",
                            gpu::DeformBackward(shape, type(), in.x, in.kernel, in.offset, in.mask,
                                                context->input(5).data(), gradients[0]->data(), gradients[1]->data(),
                                                gradients[2]->flat<float>().data(), gradients[3]->data(),
                                                bias_gradient, workspace.data(), StreamOf(context))));
  }
};

class MatchPatchesGpuOp : public OpKernel {
 public:
  explicit MatchPatchesGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("patch_size", &patch_size_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &query = context->input(0), &reference = context->input(1);
    const std::string misfit = MatchMisfit(DimensionsOf(query.shape()), DimensionsOf(reference.shape()), patch_size_);
    OP_REQUIRES(context, misfit.empty(),
                InvalidArgument("match_patches expects ", misfit, ", got query ", query.shape().DebugString(),
                                " and reference ", reference.shape().DebugString(), ", patch_size ", patch_size_, "."));
    const int64_t batch = query.dim_size(0);
    const TensorShape shape({batch, query.dim_size(1) - patch_size_ + 1, query.dim_size(2) - patch_size_ + 1});
    Tensor *index, *score;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &index));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &score));
    if (batch == 0) return;

    const gpu::MatchSizes sizes = {query.dim_size(1),     query.dim_size(2), reference.dim_size(1),
                                   reference.dim_size(2), query.dim_size(3), patch_size_};
    Tensor workspace;
    OP_REQUIRES_OK(context, Workspace(context, gpu::MatchWorkspace(sizes), &workspace));
    const int64_t query_size = query.NumElements() / batch, reference_size = reference.NumElements() / batch;
    const int64_t matches = shape.num_elements() / batch;
    // One after the other on the stream, so that one workspace serves for all.
    for (int64_t b = 0; b < batch; ++b) {
      OP_REQUIRES_OK(context, Launched("match_patches",
                                       gpu::Match(sizes, query.flat<float>().data() + b * query_size,
                                                  reference.flat<float>().data() + b * reference_size,
                                                  index->flat<int32_t>().data() + b * matches,
                                                  score->flat<float>().data() + b * matches, workspace.data(),
                                                  StreamOf(context))));
    }
  }

 private:
  int64_t patch_size_;
};

REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2D").Device(tensorflow::DEVICE_GPU), DeformConv2DGpuOp);
REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2DGrad").Device(tensorflow::DEVICE_GPU), DeformConv2DGradGpuOp);
REGISTER_KERNEL_BUILDER(Name("Tfcorr>MatchPatches").Device(tensorflow::DEVICE_GPU), MatchPatchesGpuOp);

}  // namespace
}  // namespace tfcorr

#endif  // GOOGLE_CUDA
