// The CPU's match_patches from end to end: memory, cutting into units of work, threads. Memory and threads come from a
// `Runtime`, see deform_conv2d_cpu.h; here it has to have `int32_t* Integers(int64_t count)`, too.
#ifndef TFCORR_CUSTOM_OPS_MATCH_PATCHES_CPU_H_
#define TFCORR_CUSTOM_OPS_MATCH_PATCHES_CPU_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "isa.h"
#include "kernels/match_patches.h"
#include "match_patches_geometry.h"

namespace tfcorr {

inline const MatchPatchesKernels& MatchKernelsFor(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAmx:
    case Isa::kAvx512Bfloat16:
    case Isa::kAvx512:
      return avx512::kMatchPatchesKernels;
    case Isa::kAvx2:
      return avx2::kMatchPatchesKernels;
    case Isa::kGeneric:
      break;
  }
#endif
  return generic::kMatchPatchesKernels;
}

// Norms of all patches of a map from the energies of its cells: (rows, cols) -> (rows - p + 1, cols - p + 1).
// In place: no norm is written before its energies have been read.
inline void PatchNorms(int64_t rows, int64_t cols, int64_t patch_size, float* values) {
  const int64_t patch_rows = rows - patch_size + 1, patch_cols = cols - patch_size + 1;
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < patch_cols; ++x) {
      float sum = values[y * cols + x];
      for (int64_t j = 1; j < patch_size; ++j) sum += values[y * cols + x + j];
      values[y * patch_cols + x] = sum;
    }
  }
  for (int64_t y = 0; y < patch_rows; ++y) {
    for (int64_t x = 0; x < patch_cols; ++x) {
      float sum = values[y * patch_cols + x];
      for (int64_t i = 1; i < patch_size; ++i) sum += values[(y + i) * patch_cols + x];
      values[y * patch_cols + x] = std::sqrt(sum);
    }
  }
}

// One problem's memory and the steps of its solution, used again for every entry of the batch.
template <class Runtime>
class MatchOnCpu {
 public:
  // Maps that have no MatchMisfit, (height, width, channels) each; the geometry's tiles are filled in.
  MatchOnCpu(const MatchPatchesKernels& kernels, MatchGeometry geometry, Runtime* runtime)
      : kernels_(kernels), geometry_(geometry), runtime_(*runtime) {
    kernels_.plan(&geometry_);
    PlanUnits(runtime_.threads());
  }

  // False where there was no memory.
  bool Allocate() {
    // Rows of cells whose distance is a multiple of 1 KB fall into few sets of the L1 cache.
    reference_stride_ = geometry_.channels % 256 == 0 ? geometry_.channels + 16 : geometry_.channels;
    const int64_t copied = reference_stride_ == geometry_.channels
                               ? 0
                               : geometry_.reference_rows * geometry_.reference_cols * reference_stride_;
    packed_query_ = runtime_.Floats(geometry_.query_rows * kernels_.packed_row_size(geometry_));
    reference_copy_ = runtime_.Floats(copied);
    query_norm_ = runtime_.Floats(geometry_.query_rows * geometry_.query_cols);
    weight_ = runtime_.Floats(geometry_.reference_rows * geometry_.reference_cols);
    scratch_ = runtime_.Floats(workers_ * kernels_.scratch_size(geometry_));
    best_score_ = runtime_.Floats(workers_ * state_size());
    best_index_ = runtime_.Integers(workers_ * state_size());
    return packed_query_ != nullptr && reference_copy_ != nullptr && query_norm_ != nullptr && weight_ != nullptr &&
           scratch_ != nullptr && best_score_ != nullptr && best_index_ != nullptr;
  }

  // Matches one query against one reference.
  void Match(const float* query, const float* reference, int32_t* index, float* score) {
    Prepare(query, reference);
    Walk();
    Finish(index, score);
  }

 private:
  // Packs the query, and computes the norms of both maps' patches.
  void Prepare(const float* query, const float* reference) {
    reference_ = reference_stride_ == geometry_.channels ? reference : reference_copy_;
    const int64_t rows = std::max(geometry_.query_rows, geometry_.reference_rows);
    const int64_t channels = geometry_.channels;
    ForEach(rows, [&](int64_t y) {
      if (y < geometry_.query_rows) {
        const float* row = query + y * geometry_.query_cols * channels;
        kernels_.pack_row(geometry_, row, packed_query_ + y * kernels_.packed_row_size(geometry_));
        kernels_.energy(geometry_.query_cols, channels, row, query_norm_ + y * geometry_.query_cols);
      }
      if (y < geometry_.reference_rows) {
        const int64_t first = y * geometry_.reference_cols;
        kernels_.energy(geometry_.reference_cols, channels, reference + first * channels, weight_ + first);
        if (reference_ != reference) {
          for (int64_t i = first; i < first + geometry_.reference_cols; ++i) {
            std::copy_n(reference + i * channels, channels, reference_copy_ + i * reference_stride_);
          }
        }
      }
    });
    PatchNorms(geometry_.query_rows, geometry_.query_cols, geometry_.patch_size, query_norm_);
    PatchNorms(geometry_.reference_rows, geometry_.reference_cols, geometry_.patch_size, weight_);
    const int64_t patches = geometry_.reference_patch_rows() * geometry_.reference_tiles.patches;
    for (float* w = weight_; w < weight_ + patches; ++w) {
      *w = std::isfinite(*w) ? 1.0f / (*w + kNormEpsilon) : std::numeric_limits<float>::quiet_NaN();
    }
  }

  // Visits all pairs of patches. Each worker takes units until none is left and keeps a maximum of its own, so
  // that no thread waits for another, and the result depends on neither their number nor their order.
  void Walk() {
    std::atomic<int64_t> next{0};
    ForEach(workers_, [&](int64_t worker) {
      float* scratch = scratch_ + worker * kernels_.scratch_size(geometry_);
      const RunningMaximum maximum = state(worker);
      std::fill_n(scratch, kernels_.scratch_size(geometry_), 0.0f);
      std::fill_n(maximum.score, state_size(), -std::numeric_limits<float>::infinity());
      std::fill_n(maximum.index, state_size(), 0);
      for (int64_t i = next++; i < units_; i = next++) {
        kernels_.walk(geometry_, unit(i), packed_query_, reference_, reference_stride_, weight_,
                      scratch, maximum);
      }
    });
  }

  // Merges the workers' maxima, divides by the query's norms, and writes both outputs of one map.
  void Finish(int32_t* index, float* score) {
    const ColumnTiles& tiles = geometry_.query_tiles;
    ForEach(geometry_.query_patch_rows(), [&](int64_t y) {
      for (int64_t x = 0; x < tiles.patches; ++x) {
        const int64_t tile = x / tiles.width;
        const int64_t at = (y * tiles.count + tile) * geometry_.query_lanes + x - tiles.begin(tile);
        float best = state(0).score[at];
        int32_t best_index = state(0).index[at];
        for (int64_t worker = 1; worker < workers_; ++worker) {
          const float other = state(worker).score[at];
          const int32_t other_index = state(worker).index[at];
          if (other > best || (other == best && other_index < best_index)) {
            best = other;
            best_index = other_index;
          }
        }
        const int64_t target = y * tiles.patches + x;
        index[target] = best_index;
        score[target] = best / (query_norm_[target] + kNormEpsilon);
      }
    });
  }

  static constexpr int64_t kDiagonals = 2;

  // Runs work(0), ..., work(count - 1), each on its own.
  template <class Work>
  void ForEach(int64_t count, const Work& work) {
    runtime_.ParallelFor(count, 1, [&work](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(i);
    });
  }

  // A unit of work is one band of query rows on two neighbouring diagonals of one pair of tiles. Bands repeat
  // p - 1 rows, so they are cut only as far as is needed to give every worker some units.
  void PlanUnits(int64_t threads) {
    const int64_t tiles = geometry_.query_tiles.count * geometry_.reference_tiles.count;
    diagonals_ = geometry_.query_patch_rows() + geometry_.reference_patch_rows() - 1;
    pairs_ = (diagonals_ + kDiagonals - 1) / kDiagonals;
    const int64_t wanted = 8 * threads;
    const int64_t shortest = 8 * geometry_.patch_size;
    const int64_t most = std::max<int64_t>(1, geometry_.query_patch_rows() / shortest);
    bands_ = threads == 1 ? 1 : std::clamp<int64_t>((wanted + pairs_ * tiles - 1) / (pairs_ * tiles), 1, most);
    units_ = bands_ * pairs_ * tiles;
    workers_ = std::min(threads, units_);
  }

  // The units in order: long diagonals, those in the middle, first, so that the workers end together.
  MatchWalk unit(int64_t i) const {
    MatchWalk walk;
    walk.reference_tile = i % geometry_.reference_tiles.count;
    i /= geometry_.reference_tiles.count;
    walk.query_tile = i % geometry_.query_tiles.count;
    i /= geometry_.query_tiles.count;
    const int64_t band = i % bands_, place = i / bands_;
    const int64_t middle = pairs_ / 2;
    const int64_t pair = OutwardFrom(middle, place);
    walk.diagonal = pair * kDiagonals - (geometry_.query_patch_rows() - 1);
    walk.diagonals = std::min(kDiagonals, diagonals_ - pair * kDiagonals);
    walk.query_begin = band * geometry_.query_patch_rows() / bands_;
    walk.query_end = (band + 1) * geometry_.query_patch_rows() / bands_;
    return walk;
  }

  // The numbers from `middle` outward, to both sides in turn, the lower first.
  static int64_t OutwardFrom(int64_t middle, int64_t place) {
    const int64_t distance = (place + 1) / 2;
    return place % 2 == 1 ? middle - distance : middle + distance;
  }

  int64_t state_size() const {
    return geometry_.query_patch_rows() * geometry_.query_tiles.count * geometry_.query_lanes;
  }
  RunningMaximum state(int64_t worker) const {
    return {best_score_ + worker * state_size(), best_index_ + worker * state_size()};
  }

  const MatchPatchesKernels& kernels_;
  MatchGeometry geometry_;
  Runtime& runtime_;
  int64_t diagonals_, pairs_, bands_, units_, workers_;
  int64_t reference_stride_ = 0;
  const float* reference_ = nullptr;
  float *packed_query_, *reference_copy_, *query_norm_, *weight_, *scratch_, *best_score_;
  int32_t* best_index_;
};

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_MATCH_PATCHES_CPU_H_
