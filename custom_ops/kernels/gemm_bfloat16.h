// Matrix product of one cache-sized block of bfloat16 with float32 sums, on one thread: gemm.h with the instructions of
// AVX512-BF16, which multiply pairs along k.
//
//     pack_pair(k, n, first, second, packed + p * kPanel);              // rows p and p + 1 of B, for all even p < k
//     gemm<false>(m, n, k, a, lda, packed, c, ldc, accumulate);         // k even
//
// The packed form has the panels of gemm.h, packed_size(k, n) values, in which two rows are interleaved: for each
// column its value in row p, then that in row p + 1.
//
// The two products of a pair are added to the sum one after the other. Values below the normal numbers (1.2e-38) count
// as zero, so that an infinity times one of them is NaN; those from 3.396e38 on are rounded to infinity.
//
// The instructions are assembly: this file needs no other flags than those of AVX-512, and no other code can be given
// them; but the assembler has to know them (GNU's from 2.33, Clang from 9). Who calls makes sure that the processor
// does (../isa.h).
#ifndef TFCORR_CUSTOM_OPS_KERNELS_GEMM_BFLOAT16_H_
#define TFCORR_CUSTOM_OPS_KERNELS_GEMM_BFLOAT16_H_

#include "gemm.h"

namespace tfcorr {
namespace TFCORR_ISA {

typedef uint32_t PairVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec16 __attribute__((vector_size(32)));
typedef uint16_t HalfVec8 __attribute__((vector_size(16)));

// Stores floats as bfloat16, rounded to the nearest, ties to even; a NaN stays one.
TFCORR_INLINE void store(Bfloat16* target, Vec16 values) {
  HalfVec16 halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
  __builtin_memcpy(target, &halves, sizeof(halves));
}
TFCORR_INLINE void store(Bfloat16* target, Vec8 values) {
  HalfVec8 halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
  __builtin_memcpy(target, &halves, sizeof(halves));
}
TFCORR_INLINE void store(Bfloat16* target, Vec4 values) {
  HalfVec8 halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
  __builtin_memcpy(target, &halves, sizeof(halves) / 2);
}

// sum += both products of every lane's pairs.
TFCORR_INLINE void add_products(Vec16& sum, PairVec a, PairVec b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// Two rows of B, n values each, or null for zeros; `packed` is where the first panel has them.
static void pack_pair(ptrdiff_t k, ptrdiff_t n, const Bfloat16* first, const Bfloat16* second, Bfloat16* packed) {
  for (ptrdiff_t j = 0; j < n; j += kPanel, packed += k * kPanel) {
    const ptrdiff_t width = n - j < kPanel ? n - j : kPanel;
    Bfloat16 filled[2][kPanel] = {};
    if (first) __builtin_memcpy(filled[0], first + j, width * sizeof(Bfloat16));
    if (second) __builtin_memcpy(filled[1], second + j, width * sizeof(Bfloat16));
    for (ptrdiff_t i = 0; i < kPanel; i += kLanes) {
      const PairVec even = __builtin_convertvector(load<HalfVec16>(filled[0] + i), PairVec);
      const PairVec odd = __builtin_convertvector(load<HalfVec16>(filled[1] + i), PairVec);
      store(packed + 2 * i, even | odd << 16);
    }
  }
}

// One register block: R rows of A times V vectors of a panel's columns, into or onto C.
template <int R, int V, bool kTransposedA>
static void multiply_block(ptrdiff_t k, const Bfloat16* a, ptrdiff_t lda, const Bfloat16* panel, float* c,
                           ptrdiff_t ldc, bool accumulate) {
  static_assert(!kTransposedA, "pairs lie side by side");
  Vec sum[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = accumulate ? load<Vec>(c + r * ldc + v * kLanes) : Vec{};
  }
  // Rows in threes, as in gemm.h.
  constexpr int kThirds = (R + 2) / 3;
  const Bfloat16* rows[kThirds];
#pragma GCC unroll 4
  for (int t = 0; t < kThirds; ++t) rows[t] = a + 3 * t * lda;
  for (ptrdiff_t p = 0; p < k; p += 2, panel += 2 * kPanel) {
    PairVec b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b[v] = load<PairVec>(panel + 2 * v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      __builtin_memcpy(&pair, rows[r / 3] + (r % 3) * lda, sizeof(pair));
      const PairVec factor = broadcast<PairVec>(pair);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) add_products(sum[r][v], factor, b[v]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kThirds; ++t) rows[t] += 2;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
  }
}

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_GEMM_BFLOAT16_H_
