// Stands in for CUDA's header of this name.
#ifndef TFCORR_TESTS_CUDA_EMULATION_CUDA_BF16_H_
#define TFCORR_TESTS_CUDA_EMULATION_CUDA_BF16_H_

#include "emulation.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<unsigned int>(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

#endif  // TFCORR_TESTS_CUDA_EMULATION_CUDA_BF16_H_
