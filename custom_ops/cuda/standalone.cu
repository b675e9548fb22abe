// A C interface to the GPU's kernels for tests and timings without TensorFlow (tests/cuda/, scripts/bench_cuda.py).
//
// Pointers are to the GPU's memory; `stream` is a cudaStream_t. Sizes come as arrays, in the order of the structs:
//     deform: batch, height, width, channels, out_height, out_width, out_channels, kernel_height, kernel_width,
//             stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left, groups; type 0 float32, 1 bfloat16
//     match:  query_rows, query_cols, reference_rows, reference_cols, channels, patch_size
// Functions return a cudaError_t; tfcorr_error_name tells its name.

#include <stdint.h>

#include "cuda/deform_conv2d_gpu.h"
#include "cuda/match_patches_gpu.h"

namespace {

tfcorr::DeformShape DeformShapeOf(const int64_t* n) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15]};
}

tfcorr::gpu::MatchSizes MatchSizesOf(const int64_t* n) { return {n[0], n[1], n[2], n[3], n[4], n[5]}; }

}  // namespace

extern "C" {

const char* tfcorr_error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

int64_t tfcorr_deform_forward_workspace(const int64_t* sizes, int type) {
  return tfcorr::gpu::DeformForwardWorkspace(DeformShapeOf(sizes), static_cast<tfcorr::DeformType>(type));
}

int64_t tfcorr_deform_backward_workspace(const int64_t* sizes, int type) {
  return tfcorr::gpu::DeformBackwardWorkspace(DeformShapeOf(sizes), static_cast<tfcorr::DeformType>(type));
}

int tfcorr_deform_forward(const int64_t* sizes, int type, const void* x, const void* kernel, const float* offset,
                          const void* mask, const void* bias, void* output, void* workspace, void* stream) {
  return tfcorr::gpu::DeformForward(DeformShapeOf(sizes), static_cast<tfcorr::DeformType>(type), x, kernel, offset,
                                    mask, bias, output, workspace, static_cast<cudaStream_t>(stream));
}

int tfcorr_deform_backward(const int64_t* sizes, int type, const void* x, const void* kernel, const float* offset,
                           const void* mask, const void* output_gradient, void* x_gradient, void* kernel_gradient,
                           float* offset_gradient, void* mask_gradient, void* bias_gradient, void* workspace,
                           void* stream) {
  return tfcorr::gpu::DeformBackward(DeformShapeOf(sizes), static_cast<tfcorr::DeformType>(type), x, kernel, offset,
                                     mask, output_gradient, x_gradient, kernel_gradient, offset_gradient,
                                     mask_gradient, bias_gradient, workspace, static_cast<cudaStream_t>(stream));
}

int64_t tfcorr_match_workspace(const int64_t* sizes) { return tfcorr::gpu::MatchWorkspace(MatchSizesOf(sizes)); }

int tfcorr_match(const int64_t* sizes, const float* query, const float* reference, int32_t* index, float* score,
                 void* workspace, void* stream) {
  return tfcorr::gpu::Match(MatchSizesOf(sizes), query, reference, index, score, workspace,
                            static_cast<cudaStream_t>(stream));
}

}  // extern "C"
