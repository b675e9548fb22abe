// Which instruction set's kernels serve the processor that this process runs on (see kernels/simd.h).
#ifndef TFCORR_CUSTOM_OPS_ISA_H_
#define TFCORR_CUSTOM_OPS_ISA_H_

#include <cstdlib>
#include <string>

#include "amx.h"  // Also <cpuid.h>.

namespace tfcorr {

// In rising order. kAvx512Bfloat16: with the products of AVX512-BF16; kAmx: AVX-512 with AMX.
enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bfloat16, kAmx };

// Whether the processor multiplies pairs of bfloat16; its registers are those of AVX-512. Asked once, as that is slow in
// a virtual machine. (Older compilers' __builtin_cpu_supports knows no name for it.)
inline bool HasAvx512Bfloat16() {
#if defined(__x86_64__)
  static const bool has = [] {
    constexpr uint32_t kBfloat16 = 1u << 5;  // Leaf 7, subleaf 1, EAX.
    uint32_t subleaves, eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &subleaves, &ebx, &ecx, &edx) && subleaves >= 1 &&
           __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kBfloat16) != 0;
  }();
  return has;
#else
  return false;
#endif
}

// The widest one that the processor has. The environment variable TFCORR_ISA (generic, avx2, avx512) names a lesser
// one, for tests and comparisons. AMX only with TFCORR_AMX=1, as nobody has run its kernels on a processor yet. Both
// variables are read on every call.
inline Isa SelectIsa() {
#if defined(__x86_64__)
  const char* asked = std::getenv("TFCORR_ISA");
  const std::string limit = asked == nullptr ? "" : asked;
  if (limit != "generic" && limit != "avx2" && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    const char* tiles = std::getenv("TFCORR_AMX");
    const bool wanted = limit != "avx512" && tiles != nullptr && std::string(tiles) == "1";
    if (wanted && AmxServes()) return Isa::kAmx;
    return limit != "avx512" && HasAvx512Bfloat16() ? Isa::kAvx512Bfloat16 : Isa::kAvx512;
  }
  if (limit != "generic" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

// For tfcorr doctor; lesser ones as TFCORR_ISA spells them.
inline const char* NameOf(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bfloat16:
      return "avx512bf16";
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
