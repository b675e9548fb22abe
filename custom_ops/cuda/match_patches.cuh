// The GPU's kernels of match_patches: exact, float32 throughout, never TF32.
//
// As on the CPU (../kernels/match_patches_kernel.inc): the correlation of two p x p patches is a sum over pointwise
// correlations on one diagonal of pairs of rows. A block walks down a stretch of a diagonal with one tile of query
// columns and one of reference columns: the matrix product over the C channels for one pair of rows, its sum along its
// own diagonals, and that plus the p - 1 sums before is the correlation, which is weighted and raises the maximum of
// its query patch. No product is computed twice but for the halo of a tile. The maxima are one 64-bit number for each
// query patch, raised atomically: memory is that of the maps, and the order of the blocks does not matter.
//
// All sums are taken in one order wherever a patch lies, so that equal patches have equal scores.
#ifndef TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_CUH_
#define TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_CUH_

#include <cuda_pipeline.h>

#include "cuda/index.h"
#include "cuda/launch.h"
#include "cuda/match_patches_gpu.h"

namespace tfcorr {
namespace gpu {

constexpr float kGpuNormEpsilon = 1e-5f;  // kNormEpsilon of ../match_patches_geometry.h.
constexpr int kMatchThreads = 256;
constexpr int kQueryCells = 64;       // Of a tile.
constexpr int kReferenceCells = 128;  // Of a tile.
constexpr int kMatchDepth = 16;       // Channels of a step.
constexpr int kMatchStages = 3;       // Steps that are loaded ahead, one of them in use.
constexpr int kStageSize = kMatchDepth * (kReferenceCells + kQueryCells);
constexpr int kProductStride = kQueryCells + 4;
constexpr int kMatchSharedBytes =
    static_cast<int>(sizeof(float)) * (kMatchStages * kStageSize + kReferenceCells * kProductStride);

// (rows, cols, channels) to (rows, tiles, padded channels, cells of a tile), zeros where the map ends. Blocks of 32 x 8
// threads; grid: rows * tiles, padded channels / 32, rounded up.
static __global__ void PackMap(const float* map, int64_t cols, int64_t channels, int64_t padded, MatchTiles tiles,
                               float* packed) {
  __shared__ float square[32][33];
  const int64_t row = blockIdx.x / tiles.count, tile = blockIdx.x % tiles.count;
  const int64_t first_channel = blockIdx.y * 32;
  for (int64_t first = 0; first < tiles.cells; first += 32) {
    for (int i = threadIdx.y; i < 32; i += 8) {
      const int64_t cell = tile * tiles.step + first + i, c = first_channel + threadIdx.x;
      square[i][threadIdx.x] = cell < cols && c < channels ? map[(row * cols + cell) * channels + c] : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
      const int64_t c = first_channel + i;
      if (c < padded) packed[(blockIdx.x * padded + c) * tiles.cells + first + threadIdx.x] = square[threadIdx.x][i];
    }
    __syncthreads();
  }
}

// The sum of the squares of each cell's channels, by one warp a cell.
static __global__ void CellEnergies(const float* map, int64_t cells, int64_t channels, float* energies) {
  const int64_t cell = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  if (cell >= cells) return;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
    const float value = map[cell * channels + c];
    sum = fmaf(value, value, sum);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) energies[cell] = sum;
}

// Of every patch: the norm + epsilon, or its inverse, NaN where the norm is no finite number.
static __global__ void PatchNorms(const float* energies, int64_t cols, int64_t patch_size, int64_t patch_cols,
                                  int64_t patches, bool inverse, float* norms) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= patches) return;
  const float* first = energies + i / patch_cols * cols + i % patch_cols;
  float sum = 0.0f;
  for (int64_t y = 0; y < patch_size; ++y) {
    for (int64_t x = 0; x < patch_size; ++x) sum += first[y * cols + x];
  }
  const float norm = sqrtf(sum);
  if (!inverse) {
    norms[i] = norm + kGpuNormEpsilon;
  } else {
    norms[i] = norm < INFINITY ? 1.0f / (norm + kGpuNormEpsilon) : NAN;
  }
}

// What the walk reads and writes.
struct MatchWalkTask {
  MatchTiles query_tiles, reference_tiles;
  int64_t query_patch_rows, reference_patch_rows, padded, bands;
  const float* query;      // Packed.
  const float* reference;  // Packed.
  const float* weight;     // Of each reference patch.
  unsigned long long* keys;  // Of each query patch, see MatchKey.
};

__device__ __forceinline__ void Raise(unsigned long long* key, float score, int64_t index) {
  const unsigned long long candidate = MatchKey(score, static_cast<int32_t>(index));
  // Keys only grow: one that is larger already will be so.
  if (candidate > *static_cast<volatile unsigned long long*>(key)) atomicMax(key, candidate);
}

// One block walks one stretch of a diagonal with one pair of tiles. Grid: stretches * reference tiles * query tiles,
// the last fastest. P is the patch size.
template <int P>
__global__ void __launch_bounds__(kMatchThreads, P <= 3 ? 2 : 1) WalkDiagonals(MatchWalkTask task) {
  TFCORR_DYNAMIC_SHARED(float4, shared_memory);
  float* const stages = reinterpret_cast<float*>(shared_memory);
  float* const product = stages + kMatchStages * kStageSize;
  constexpr int kHalo = P - 1;
  constexpr int kRing = kHalo > 0 ? kHalo : 1;
  constexpr int kShares = kReferenceCells * kQueryCells / kMatchThreads;

  const int64_t query_tile = blockIdx.x % task.query_tiles.count;
  const int64_t reference_tile = blockIdx.x / task.query_tiles.count % task.reference_tiles.count;
  const MatchStretch stretch = StretchAt(blockIdx.x / (task.query_tiles.count * task.reference_tiles.count), task.bands,
                                         task.query_patch_rows, task.reference_patch_rows);
  if (stretch.begin >= stretch.end) return;
  const int steps = static_cast<int>(task.padded / kMatchDepth);
  const int rows = static_cast<int>(stretch.end - stretch.begin) + kHalo;

  // The next step to be loaded; the loads run ahead over the ends of rows.
  int loaded_row = 0, loaded_step = 0, loaded_stage = 0;
  const auto load = [&] {
    if (loaded_row < rows) {
      const int64_t query_row = stretch.begin + loaded_row, reference_row = query_row + stretch.diagonal;
      const float* reference =
          task.reference + ((reference_row * task.reference_tiles.count + reference_tile) * task.padded +
                            loaded_step * kMatchDepth) * kReferenceCells;
      const float* query = task.query + ((query_row * task.query_tiles.count + query_tile) * task.padded +
                                         loaded_step * kMatchDepth) * kQueryCells;
      float* const a = stages + loaded_stage * kStageSize;
      float* const b = a + kMatchDepth * kReferenceCells;
#pragma unroll
      for (int i = threadIdx.x * 4; i < kMatchDepth * kReferenceCells; i += kMatchThreads * 4) {
        __pipeline_memcpy_async(a + i, reference + i, 16);
      }
#pragma unroll
      for (int i = threadIdx.x * 4; i < kMatchDepth * kQueryCells; i += kMatchThreads * 4) {
        __pipeline_memcpy_async(b + i, query + i, 16);
      }
      if (++loaded_step == steps) {
        loaded_step = 0;
        ++loaded_row;
      }
    }
    loaded_stage = loaded_stage + 1 == kMatchStages ? 0 : loaded_stage + 1;
    __pipeline_commit();
  };
  for (int i = 0; i + 1 < kMatchStages; ++i) load();

  // Of the product: rows [a_row, + 8), columns [b_column, + 4). Of the shares: column x, rows z + 4 i.
  const int a_row = threadIdx.x / 16 * 8, b_column = threadIdx.x % 16 * 4;
  const int x = threadIdx.x % kQueryCells, z = threadIdx.x / kQueryCells;
  constexpr int kSpread = kMatchThreads / kQueryCells;
  const int64_t query_column = query_tile * task.query_tiles.step + x;
  const bool has_query = x + kHalo < kQueryCells && query_column < task.query_tiles.patches;
  float ring[kRing][kShares];
#pragma unroll
  for (int j = 0; j < kRing; ++j) {
#pragma unroll
    for (int i = 0; i < kShares; ++i) ring[j][i] = 0.0f;
  }

  int stage = 0;
  for (int row = 0; row < rows; ++row) {
    float sums[8][4] = {};
    for (int step = 0; step < steps; ++step) {
      __pipeline_wait_prior(kMatchStages - 2);
      __syncthreads();
      load();  // Into the stage that was used in the step before.
      const float* a = stages + stage * kStageSize + a_row;
      const float* b = stages + stage * kStageSize + kMatchDepth * kReferenceCells + b_column;
      stage = stage + 1 == kMatchStages ? 0 : stage + 1;
#pragma unroll
      for (int k = 0; k < kMatchDepth; ++k, a += kReferenceCells, b += kQueryCells) {
        const float4 a0 = *reinterpret_cast<const float4*>(a), a1 = *reinterpret_cast<const float4*>(a + 4);
        const float4 b0 = *reinterpret_cast<const float4*>(b);
        const float left[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
        const float right[4] = {b0.x, b0.y, b0.z, b0.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
        }
      }
    }
    // What was read from `product` in the row before was read before the barriers above.
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      *reinterpret_cast<float4*>(product + (a_row + i) * kProductStride + b_column) =
          make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    }
    __syncthreads();
    if (!has_query) continue;

    const int64_t query_row = stretch.begin + row - kHalo;
    const int64_t first_reference = (query_row + stretch.diagonal) * task.reference_tiles.patches;
    float best = -INFINITY;
    int64_t best_index = -1;
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      const int at = z + kSpread * i;
      const int64_t reference_column = reference_tile * task.reference_tiles.step + at;
      if (at + kHalo >= kReferenceCells || reference_column >= task.reference_tiles.patches) continue;
      float share = product[at * kProductStride + x];
#pragma unroll
      for (int j = 1; j < P; ++j) share += product[(at + j) * kProductStride + x + j];
      float correlation = share;
      if constexpr (kHalo > 0) {
        // From the oldest row to the newest.
        correlation = ring[0][i];
#pragma unroll
        for (int j = 1; j < kHalo; ++j) {
          correlation += ring[j][i];
          ring[j - 1][i] = ring[j][i];
        }
        correlation += share;
        ring[kHalo - 1][i] = share;
      }
      if (row < kHalo) continue;
      const float score = correlation * __ldg(task.weight + first_reference + reference_column);
      if (score > best) {  // Never NaN; the first of equals stays.
        best = score;
        best_index = first_reference + reference_column;
      }
    }
    if (best_index >= 0) Raise(task.keys + query_row * task.query_tiles.patches + query_column, best, best_index);
  }
}

// Any patch size, by one block for a query patch and one warp for a pair: simple, and many times slower.
static __global__ void MatchSlowly(MatchSizes sizes, const float* query, const float* reference, const float* weight,
                                   int64_t reference_patches, unsigned long long* keys) {
  const int64_t p = sizes.patch_size;
  const int64_t query_width = sizes.query_cols - p + 1, reference_width = sizes.reference_cols - p + 1;
  const int64_t q = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float best = -INFINITY;
  int64_t best_index = -1;
  for (int64_t r = warp; r < reference_patches; r += blockDim.x / 32) {
    float sum = 0.0f;
    for (int64_t t = 0; t < p * p; ++t) {
      const float* a = query + ((q / query_width + t / p) * sizes.query_cols + q % query_width + t % p) * sizes.channels;
      const float* b = reference + ((r / reference_width + t / p) * sizes.reference_cols + r % reference_width + t % p) *
                                       sizes.channels;
      for (int64_t c = lane; c < sizes.channels; c += 32) sum = fmaf(a[c], b[c], sum);
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    const float score = sum * weight[r];
    if (score > best) {
      best = score;
      best_index = r;
    }
  }
  if (lane == 0 && best_index >= 0) Raise(keys + q, best, best_index);
}

static __global__ void ReadKeys(const unsigned long long* keys, const float* query_norm, int64_t patches,
                                int32_t* index, float* score) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= patches) return;
  index[i] = IndexOf(keys[i]);
  score[i] = ScoreOf(keys[i]) / query_norm[i];
}

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_MATCH_PATCHES_CUH_
