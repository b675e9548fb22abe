// Which instruction set's kernels serve the processor that this process runs on (see kernels/simd.h).
#ifndef TFCORR_CUSTOM_OPS_ISA_H_
#define TFCORR_CUSTOM_OPS_ISA_H_

#include <cstdlib>
#include <string>

namespace tfcorr {

enum class Isa { kGeneric, kAvx2, kAvx512 };

// The widest one that the processor has. The environment variable TFCORR_ISA (generic, avx2, avx512) names a lesser
// one, for tests; it is read on every call.
inline Isa SelectIsa() {
#if defined(__x86_64__)
  const char* asked = std::getenv("TFCORR_ISA");
  const std::string limit = asked == nullptr ? "" : asked;
  if (limit != "generic" && limit != "avx2" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (limit != "generic" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_ISA_H_
