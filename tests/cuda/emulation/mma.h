// Stands in for CUDA's header of this name: a warp's first lane holds the whole matrices, the others nothing.
#ifndef TFCORR_TESTS_CUDA_EMULATION_MMA_H_
#define TFCORR_TESTS_CUDA_EMULATION_MMA_H_

#include <type_traits>

#include "cuda_bf16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  float at[16][16];
};

inline bool Leads() { return emulation::current % 32 == 0; }

inline void CheckAligned(const void* address, unsigned int stride, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % 32 != 0 || stride * size % 16 != 0) {
    fprintf(stderr, "emulation: a matrix that is not aligned\n");
    abort();
  }
}

template <class Fragment>
void fill_fragment(Fragment& fragment, float value) {
  for (auto& row : fragment.at) {
    for (float& element : row) element = value;
  }
}

template <class Use, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, Layout>& fragment, const __nv_bfloat16* source,
                      unsigned int stride) {
  CheckAligned(source, stride, sizeof(*source));
  if (!Leads()) return;
  const bool by_columns = std::is_same<Layout, col_major>::value;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      fragment.at[i][j] = __bfloat162float(by_columns ? source[j * stride + i] : source[i * stride + j]);
    }
  }
}

template <class C, class A, class B>
void mma_sync(C& target, const A& a, const B& b, const C& c) {
  if (!Leads()) return;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      float sum = c.at[i][j];
      for (int k = 0; k < 16; ++k) sum += a.at[i][k] * b.at[k][j];
      target.at[i][j] = sum;
    }
  }
}

template <class Fragment>
void store_matrix_sync(float* target, const Fragment& fragment, unsigned int stride, layout_t) {
  CheckAligned(target, stride, sizeof(*target));
  if (!Leads()) return;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) target[i * stride + j] = fragment.at[i][j];
  }
}

}  // namespace wmma
}  // namespace nvcuda

#endif  // TFCORR_TESTS_CUDA_EMULATION_MMA_H_
