// Which instruction set's kernels serve the processor that this process runs on (see kernels/simd.h).
#ifndef TFCORR_CUSTOM_OPS_ISA_H_
#define TFCORR_CUSTOM_OPS_ISA_H_

#include <cstdlib>
#include <string>

#include "amx.h"

namespace tfcorr {

enum class Isa { kGeneric, kAvx2, kAvx512, kAmx };  // kAmx: AVX-512 with AMX.

// The widest one that the processor has. The environment variable TFCORR_ISA (generic, avx2, avx512) names a lesser
// one, for tests. AMX only with TFCORR_AMX=1, as nobody has run its kernels on a processor yet. Both variables are read
// on every call.
inline Isa SelectIsa() {
#if defined(__x86_64__)
  const char* asked = std::getenv("TFCORR_ISA");
  const std::string limit = asked == nullptr ? "" : asked;
  if (limit != "generic" && limit != "avx2" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    const char* tiles = std::getenv("TFCORR_AMX");
    const bool wanted = limit != "avx512" && tiles != nullptr && std::string(tiles) == "1";
    return wanted && AmxServes() ? Isa::kAmx : Isa::kAvx512;
  }
  if (limit != "generic" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

// For tfcorr doctor, as TFCORR_ISA spells them.
inline const char* NameOf(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kGeneric:
      break;
  }
  return "generic";
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_ISA_H_
