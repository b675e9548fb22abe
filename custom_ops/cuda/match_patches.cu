// Launches of the kernels in match_patches.cuh.

#include "cuda/match_patches.cuh"

#include <algorithm>

namespace tfcorr {
namespace gpu {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

struct Plan {
  explicit Plan(const MatchSizes& s)
      : query(CutMatchTiles(s.query_cols, s.patch_size, kQueryCells)),
        reference(CutMatchTiles(s.reference_cols, s.patch_size, kReferenceCells)),
        query_patch_rows(s.query_rows - s.patch_size + 1),
        reference_patch_rows(s.reference_rows - s.patch_size + 1),
        queries(query_patch_rows * query.patches),
        references(reference_patch_rows * reference.patches),
        padded(RoundUp(s.channels, kMatchDepth)),
        tiled(s.patch_size == 1 || s.patch_size == 3 || s.patch_size == 5) {
    const int64_t walks = (query_patch_rows + reference_patch_rows - 1) * query.count * reference.count;
    // Bands repeat p - 1 rows: no shorter than 8 p, and no more than keep a large GPU busy.
    const int64_t most = std::max<int64_t>(1, std::min(query_patch_rows, reference_patch_rows) / (8 * s.patch_size));
    bands = std::clamp<int64_t>(DivideUp(4096, walks), 1, most);
    blocks = walks * bands;
  }

  MatchTiles query, reference;
  int64_t query_patch_rows, reference_patch_rows, queries, references, padded;
  bool tiled;  // Whether there is a kernel for the patch size.
  int64_t bands, blocks;
};

struct Space {
  Space(const MatchSizes& s, const Plan& plan, void* memory) : memory_(static_cast<char*>(memory)) {
    if (plan.tiled) {
      packed_query = Take<float>(s.query_rows * plan.query.count * plan.padded * kQueryCells);
      packed_reference = Take<float>(s.reference_rows * plan.reference.count * plan.padded * kReferenceCells);
    }
    query_energy = Take<float>(s.query_rows * s.query_cols);
    reference_energy = Take<float>(s.reference_rows * s.reference_cols);
    query_norm = Take<float>(plan.queries);
    weight = Take<float>(plan.references);
    keys = Take<unsigned long long>(plan.queries);
  }

  float *packed_query = nullptr, *packed_reference = nullptr, *query_energy, *reference_energy, *query_norm, *weight;
  unsigned long long* keys;
  int64_t size = 0;

 private:
  template <class T>
  T* Take(int64_t count) {
    T* const taken = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + size);
    size += RoundUp(count * static_cast<int64_t>(sizeof(T)), 256);
    return taken;
  }
  char* const memory_;
};

unsigned int Blocks(int64_t count) { return static_cast<unsigned int>(DivideUp(count, kBlock)); }

void Pack(const float* map, int64_t rows, int64_t cols, int64_t channels, int64_t padded, const MatchTiles& tiles,
          float* packed, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned int>(rows * tiles.count), static_cast<unsigned int>(DivideUp(padded, 32)));
  Launch(PackMap, grid, dim3(32, 8), 0, stream, map, cols, channels, padded, tiles, packed);
}

template <int P>
cudaError_t Walk(const MatchWalkTask& task, int64_t blocks, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(WalkDiagonals<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, kMatchSharedBytes);
  if (error != cudaSuccess) return error;
  Launch(WalkDiagonals<P>, static_cast<unsigned int>(blocks), kMatchThreads, kMatchSharedBytes, stream, task);
  return cudaGetLastError();
}

}  // namespace

int64_t MatchWorkspace(const MatchSizes& sizes) { return Space(sizes, Plan(sizes), nullptr).size; }

cudaError_t Match(const MatchSizes& sizes, const float* query, const float* reference, int32_t* index, float* score,
                  void* workspace, cudaStream_t stream) {
  const Plan plan(sizes);
  const int64_t cells = std::max(sizes.query_rows * sizes.query_cols, sizes.reference_rows * sizes.reference_cols);
  if (plan.blocks > kMostBlocks || cells * 32 > kMostBlocks || plan.padded / 32 > 65535) return cudaErrorInvalidValue;
  const Space space(sizes, plan, workspace);
  cudaError_t error = cudaMemsetAsync(space.keys, 0, plan.queries * sizeof(*space.keys), stream);
  if (error != cudaSuccess) return error;

  const auto norms = [&](const float* map, int64_t rows, int64_t cols, int64_t patches, bool inverse, float* energies,
                         float* target) {
    Launch(CellEnergies, Blocks(rows * cols * 32), kBlock, 0, stream, map, rows * cols, sizes.channels, energies);
    Launch(PatchNorms, Blocks(patches), kBlock, 0, stream, energies, cols, sizes.patch_size, cols - sizes.patch_size + 1,
                                                       patches, inverse, target);
  };
  norms(query, sizes.query_rows, sizes.query_cols, plan.queries, false, space.query_energy, space.query_norm);
  norms(reference, sizes.reference_rows, sizes.reference_cols, plan.references, true, space.reference_energy,
        space.weight);

  if (plan.tiled) {
    Pack(query, sizes.query_rows, sizes.query_cols, sizes.channels, plan.padded, plan.query, space.packed_query, stream);
    Pack(reference, sizes.reference_rows, sizes.reference_cols, sizes.channels, plan.padded, plan.reference,
         space.packed_reference, stream);
    const MatchWalkTask task = {plan.query,         plan.reference, plan.query_patch_rows, plan.reference_patch_rows,
                                plan.padded,        plan.bands,     space.packed_query,    space.packed_reference,
                                space.weight,       space.keys};
    error = sizes.patch_size == 1   ? Walk<1>(task, plan.blocks, stream)
            : sizes.patch_size == 3 ? Walk<3>(task, plan.blocks, stream)
                                    : Walk<5>(task, plan.blocks, stream);
    if (error != cudaSuccess) return error;
  } else {
    Launch(MatchSlowly, static_cast<unsigned int>(plan.queries), kBlock, 0, stream, sizes, query, reference, space.weight,
                                                                                plan.references, space.keys);
  }
  Launch(ReadKeys, Blocks(plan.queries), kBlock, 0, stream, space.keys, space.query_norm, plan.queries, index, score);
  return cudaGetLastError();
}

}  // namespace gpu
}  // namespace tfcorr
