// Starting kernels, in a form that the host emulation in tests/cuda/emulation/ can provide, too.
#ifndef TFCORR_CUSTOM_OPS_CUDA_LAUNCH_H_
#define TFCORR_CUSTOM_OPS_CUDA_LAUNCH_H_

#if defined(TFCORR_CUDA_EMULATION)

#include "emulation.h"

#else

#include <cuda_runtime.h>

// The dynamic shared memory of a block, declared within a kernel.
#define TFCORR_DYNAMIC_SHARED(type, name) extern __shared__ type name[]

namespace tfcorr {
namespace gpu {

template <class... Parameters, class... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
}

}  // namespace gpu
}  // namespace tfcorr

#endif

#endif  // TFCORR_CUSTOM_OPS_CUDA_LAUNCH_H_
