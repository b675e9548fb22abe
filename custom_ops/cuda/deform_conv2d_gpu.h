// Modulated deformable convolution on the GPU: what deform_conv2d.cu gives to the TensorFlow op and to standalone.cu.
//
// All pointers are to the GPU's memory, aligned to 16 bytes; layouts and null pointers as in ../kernels/deform_conv2d.h.
// Shapes must be ones that FitDeformShape lets through, that are not empty, and that FitsGpu. Everything is queued on the
// stream; an error is that of queueing.
#ifndef TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_GPU_H_
#define TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_GPU_H_

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/deform_conv2d.h"

namespace tfcorr {
namespace gpu {

// Bytes of scratch memory.
int64_t DeformForwardWorkspace(const DeformShape& shape, DeformType type);
int64_t DeformBackwardWorkspace(const DeformShape& shape, DeformType type);

cudaError_t DeformForward(const DeformShape& shape, DeformType type, const void* x, const void* kernel,
                          const float* offset, const void* mask, const void* bias, void* output, void* workspace,
                          cudaStream_t stream);

// mask_gradient is not touched where mask is null, bias_gradient where it is null.
cudaError_t DeformBackward(const DeformShape& shape, DeformType type, const void* x, const void* kernel,
                           const float* offset, const void* mask, const void* output_gradient, void* x_gradient,
                           void* kernel_gradient, float* offset_gradient, void* mask_gradient, void* bias_gradient,
                           void* workspace, cudaStream_t stream);

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_GPU_H_
