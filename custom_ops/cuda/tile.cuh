// The product of two tiles in shared memory, by one block of 128 threads: C (64, 64) += A (64, k) B (k, 64), k = 32.
//
// float32 goes through ordinary multiply-adds (never TF32), each thread holding 8 x 4 sums; bfloat16 through the tensor
// cores with float32 sums, each warp holding 32 x 32. Both want A and B with k as the outer dimension, rows of kStride
// values, 16-byte aligned.
#ifndef TFCORR_CUSTOM_OPS_CUDA_TILE_CUH_
#define TFCORR_CUSTOM_OPS_CUDA_TILE_CUH_

#include <cuda_bf16.h>
#include <mma.h>

#include "cuda/index.h"

namespace tfcorr {
namespace gpu {

constexpr int kThreads = 128;
constexpr int kTile = 64;   // Rows and columns of C.
constexpr int kDepth = 32;  // k.
// Of a tile of A or B. The 8 values more spread the rows over the memory banks, and keep them 16-byte aligned.
constexpr int kStride = kTile + 8;
constexpr int kTileSize = kDepth * kStride;
constexpr int kSumStride = kTile + 4;  // Of C.

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void Put(float* target, float value) { *target = value; }
__device__ __forceinline__ void Put(__nv_bfloat16* target, float value) { *target = __float2bfloat16_rn(value); }

template <class T>
class Product;

template <>
class Product<float> {
 public:
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums_[i][j] = 0.0f;
    }
  }

  __device__ __forceinline__ void Add(const float* a, const float* b) {
    const float* row = a + Row();
    const float* column = b + ColumnOf();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k, row += kStride, column += kStride) {
      const float4 a0 = *reinterpret_cast<const float4*>(row), a1 = *reinterpret_cast<const float4*>(row + 4);
      const float4 b0 = *reinterpret_cast<const float4*>(column);
      const float left[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
      const float right[4] = {b0.x, b0.y, b0.z, b0.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i][j] = fmaf(left[i], right[j], sums_[i][j]);
      }
    }
  }

  // To shared memory, rows of kSumStride.
  __device__ __forceinline__ void Store(float* c) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      *reinterpret_cast<float4*>(c + (Row() + i) * kSumStride + ColumnOf()) =
          make_float4(sums_[i][0], sums_[i][1], sums_[i][2], sums_[i][3]);
    }
  }

 private:
  __device__ __forceinline__ static int Row() { return threadIdx.x / 16 * 8; }
  __device__ __forceinline__ static int ColumnOf() { return threadIdx.x % 16 * 4; }

  float sums_[8][4];
};

template <>
class Product<__nv_bfloat16> {
 public:
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) nvcuda::wmma::fill_fragment(sums_[i][j], 0.0f);
    }
  }

  __device__ __forceinline__ void Add(const __nv_bfloat16* a, const __nv_bfloat16* b) {
    using namespace nvcuda::wmma;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      fragment<matrix_a, 16, 16, 16, __nv_bfloat16, col_major> left[2];
      fragment<matrix_b, 16, 16, 16, __nv_bfloat16, row_major> right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrix_sync(left[i], a + k * kStride + Row() + 16 * i, kStride);
        load_matrix_sync(right[i], b + k * kStride + ColumnOf() + 16 * i, kStride);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) mma_sync(sums_[i][j], left[i], right[j], sums_[i][j]);
      }
    }
  }

  __device__ __forceinline__ void Store(float* c) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        nvcuda::wmma::store_matrix_sync(c + (Row() + 16 * i) * kSumStride + ColumnOf() + 16 * j, sums_[i][j],
                                        kSumStride, nvcuda::wmma::mem_row_major);
      }
    }
  }

 private:
  // Four warps, two by two.
  __device__ __forceinline__ static int Row() { return threadIdx.x / 64 * 32; }
  __device__ __forceinline__ static int ColumnOf() { return threadIdx.x / 32 % 2 * 32; }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_[2][2];
};

// A block's shared memory: tiles of A and B for two steps, and in their place the sums when all steps are done.
template <class T>
union alignas(128) Shared {
  struct {
    T a[2][kTileSize];
    T b[2][kTileSize];
  } tiles;
  float sums[kTile * kSumStride];
};

// product += the sum over `steps` of A_i B_i, where load(step, a, b) fills the tiles: while one step is multiplied, the
// next one's loads are under way.
template <class T, class Load>
__device__ __forceinline__ void MultiplySteps(int steps, Shared<T>* shared, Product<T>* product, const Load& load) {
  if (steps > 0) load(0, shared->tiles.a[0], shared->tiles.b[0]);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int now = step % 2, next = 1 - now;
    if (step + 1 < steps) load(step + 1, shared->tiles.a[next], shared->tiles.b[next]);
    product->Add(shared->tiles.a[now], shared->tiles.b[now]);
    __syncthreads();
  }
}

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_TILE_CUH_
