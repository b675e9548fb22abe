// match_patches on the GPU: what match_patches.cu gives to the TensorFlow op and to standalone.cu.
#ifndef TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_GPU_H_
#define TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_GPU_H_

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace tfcorr {
namespace gpu {

// Sizes of a query and a reference map, in cells; none with a MatchMisfit.
struct MatchSizes {
  int64_t query_rows, query_cols, reference_rows, reference_cols, channels, patch_size;
};

// Bytes of scratch memory: about what both maps take.
int64_t MatchWorkspace(const MatchSizes& sizes);

// Queues one query (rows, cols, channels) against one reference. All pointers are to the GPU's memory, the workspace's
// aligned to 256 bytes; index and score are (query_rows - p + 1, query_cols - p + 1).
cudaError_t Match(const MatchSizes& sizes, const float* query, const float* reference, int32_t* index, float* score,
                  void* workspace, cudaStream_t stream);

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_GPU_H_
