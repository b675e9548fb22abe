// Single-precision matrix product of one cache-sized block: C = A B or C += A B, on one thread. (gemm_bfloat16.h puts
// another register block into the same frame.)
//
//     float* packed = scratch;                      // packed_size(k, n) floats, best 64-byte aligned
//     pack_b(k, n, b, ldb, packed);                 // once, from a row-major (k, n) matrix; or
//     pack_b_transposed(k, n, bt, ldbt, packed);    // from its transpose, a row-major (n, k) matrix
//     gemm<false>(m, n, k, a, lda, packed, c, ldc, accumulate);   // A is (m, k) row-major: a[i * lda + p]
//     gemm<true>(m, n, k, a, lda, packed, c, ldc, accumulate);    // A is given transposed: a[p * lda + i]
//
// C is (m, n) row-major with row stride ldc >= n; nothing outside of it is written. Every sum runs over k in rising
// order in a register of its own, so that the result of an element does not depend on the block it is computed in.
//
// The packed form is a sequence of panels of kPanel columns: panel j holds B[:, j kPanel : (j + 1) kPanel] as k rows
// of kPanel floats, the last one filled up with zeros. The register block is kRows x kPanel. Nothing here blocks for
// caches: keep the A block and the panels within L2 by the choice of m and k (k of 250 to 600, A below 300 KB), and
// let lda be no multiple of 1024, or the rows of A fight for the same sets of L1 (`leading_dimension` sees to it).
#ifndef TFCORR_CUSTOM_OPS_KERNELS_GEMM_H_
#define TFCORR_CUSTOM_OPS_KERNELS_GEMM_H_

#include "simd.h"

namespace tfcorr {
namespace TFCORR_ISA {

// Accumulators, one row of B and one broadcast must fit into 32 registers with AVX-512, 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;

// Values that the packed form of a (k, n) matrix has.
TFCORR_INLINE ptrdiff_t packed_size(ptrdiff_t k, ptrdiff_t n) { return k * round_up(n, kPanel); }

// A row stride of at least `columns` whose rows do not all fall into the same cache sets.
TFCORR_INLINE ptrdiff_t leading_dimension(ptrdiff_t columns) {
  const ptrdiff_t rounded = round_up(columns, 16);
  return rounded % 256 == 0 ? rounded + 16 : rounded;
}

// Packs the row-major (k, n) matrix b with row stride ldb.
__attribute__((unused)) static void pack_b(ptrdiff_t k, ptrdiff_t n, const float* b, ptrdiff_t ldb, float* packed) {
  for (ptrdiff_t j = 0; j < n; j += kPanel) {
    const ptrdiff_t width = n - j < kPanel ? n - j : kPanel;
    for (ptrdiff_t p = 0; p < k; ++p, packed += kPanel) {
      const float* row = b + p * ldb + j;
      if (width == kPanel) {
        store(packed, load<Vec>(row));
        store(packed + kLanes, load<Vec>(row + kLanes));
      } else {
        for (ptrdiff_t i = 0; i < kPanel; ++i) packed[i] = i < width ? row[i] : 0.0f;
      }
    }
  }
}

// Packs the (k, n) matrix whose transpose is the row-major (n, k) matrix bt with row stride ldbt.
__attribute__((unused)) static void pack_b_transposed(ptrdiff_t k, ptrdiff_t n, const float* bt, ptrdiff_t ldbt,
                                                      float* packed) {
  for (ptrdiff_t j = 0; j < n; j += kPanel, packed += k * kPanel) {
    const ptrdiff_t width = n - j < kPanel ? n - j : kPanel;
    // Blocks of 16 along k keep the rows being read and the lines being written in L1.
    for (ptrdiff_t p = 0; p < k; p += 16) {
      const ptrdiff_t stop = p + 16 < k ? p + 16 : k;
      for (ptrdiff_t i = 0; i < kPanel; ++i) {
        const float* column = bt + (j + i) * ldbt;
        for (ptrdiff_t q = p; q < stop; ++q) packed[q * kPanel + i] = i < width ? column[q] : 0.0f;
      }
    }
  }
}

// One register block: R rows of A times V vectors of a panel's columns, into or onto C.
template <int R, int V, bool kTransposedA>
static void multiply_block(ptrdiff_t k, const float* a, ptrdiff_t lda, const float* panel, float* c, ptrdiff_t ldc,
                           bool accumulate) {
  Vec sum[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = accumulate ? load<Vec>(c + r * ldc + v * kLanes) : Vec{};
  }
  // Rows in threes: x86 can address base, base + lda and base + 2 lda, so a third of the pointers has to be kept.
  constexpr int kThirds = (R + 2) / 3;
  const float* rows[kThirds];
#pragma GCC unroll 4
  for (int t = 0; t < kThirds; ++t) rows[t] = kTransposedA ? a + 3 * t : a + 3 * t * lda;
  for (ptrdiff_t p = 0; p < k; ++p, panel += kPanel) {
    Vec b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b[v] = load<Vec>(panel + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec factor = broadcast<Vec>(kTransposedA ? rows[r / 3][r % 3] : rows[r / 3][(r % 3) * lda]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = fma(factor, b[v], sum[r][v]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kThirds; ++t) rows[t] += kTransposedA ? lda : 1;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
  }
}

// R rows of A times `width` columns of one panel. A panel that is not full goes through a buffer.
template <int R, bool kTransposedA, class T>
static void multiply_rows(ptrdiff_t width, ptrdiff_t k, const T* a, ptrdiff_t lda, const T* panel, float* c,
                          ptrdiff_t ldc, bool accumulate) {
  if (width == kPanel) {
    multiply_block<R, 2, kTransposedA>(k, a, lda, panel, c, ldc, accumulate);
  } else if (width == kLanes) {
    multiply_block<R, 1, kTransposedA>(k, a, lda, panel, c, ldc, accumulate);
  } else {
    float buffer[R * kPanel];
    if (width < kLanes) {
      multiply_block<R, 1, kTransposedA>(k, a, lda, panel, buffer, kPanel, false);
    } else {
      multiply_block<R, 2, kTransposedA>(k, a, lda, panel, buffer, kPanel, false);
    }
    for (int r = 0; r < R; ++r) {
      for (ptrdiff_t i = 0; i < width; ++i) {
        float* target = c + r * ldc + i;
        *target = accumulate ? *target + buffer[r * kPanel + i] : buffer[r * kPanel + i];
      }
    }
  }
}

// multiply_rows for a number of rows known at run time only, 1 <= rows <= R.
template <int R, bool kTransposedA>
struct RowDispatch {
  template <class T>
  static void run(int rows, ptrdiff_t width, ptrdiff_t k, const T* a, ptrdiff_t lda, const T* panel, float* c,
                  ptrdiff_t ldc, bool accumulate) {
    if (rows == R) {
      multiply_rows<R, kTransposedA>(width, k, a, lda, panel, c, ldc, accumulate);
    } else {
      RowDispatch<R - 1, kTransposedA>::run(rows, width, k, a, lda, panel, c, ldc, accumulate);
    }
  }
};
template <bool kTransposedA>
struct RowDispatch<0, kTransposedA> {
  template <class T>
  static void run(int, ptrdiff_t, ptrdiff_t, const T*, ptrdiff_t, const T*, float*, ptrdiff_t, bool) {}
};

// C (m, n) = A B, or C += A B with `accumulate`; see the head of this file.
template <bool kTransposedA, class T>
static void gemm(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const T* a, ptrdiff_t lda, const T* packed_b, float* c,
                 ptrdiff_t ldc, bool accumulate) {
  for (ptrdiff_t i = 0; i < m; i += kRows) {
    const int rows = static_cast<int>(m - i < kRows ? m - i : kRows);
    const T* block = kTransposedA ? a + i : a + i * lda;
    for (ptrdiff_t j = 0; j < n; j += kPanel) {
      const ptrdiff_t width = n - j < kPanel ? n - j : kPanel;
      RowDispatch<kRows, kTransposedA>::run(rows, width, k, block, lda, packed_b + j * k, c + i * ldc + j, ldc,
                                            accumulate);
    }
  }
}

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_GEMM_H_
