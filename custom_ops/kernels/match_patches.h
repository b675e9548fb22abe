// What the op `match_patches` and its kernels know of each other. The kernels are compiled once per instruction set
// (see simd.h); the op takes those of the processor that it runs on (see ../isa.h).
//
// Names: a *cell* is a position of a feature map, a *patch* p x p cells, named by its top-left cell. Maps are
// row-major, (rows, cols, channels). The columns of both maps are cut into tiles, of equal width but perhaps the last,
// that overlap by p - 1 cells, so that the work on two rows of two tiles stays within a core's cache.
#ifndef TFCORR_CUSTOM_OPS_KERNELS_MATCH_PATCHES_H_
#define TFCORR_CUSTOM_OPS_KERNELS_MATCH_PATCHES_H_

#include <stddef.h>
#include <stdint.h>

// Inline functions of this header must vanish into their callers: a copy of their own, compiled with AVX-512, could be
// the one that the linker keeps for everybody.
#define TFCORR_MEMBER __attribute__((always_inline))

namespace tfcorr {

// One dimension of tiles over the columns of a map.
struct ColumnTiles {
  ptrdiff_t patches;  // columns of patches in the whole map
  ptrdiff_t width;    // columns of patches in a tile; the last one may have fewer
  ptrdiff_t count;

  TFCORR_MEMBER ptrdiff_t begin(ptrdiff_t tile) const { return tile * width; }
  TFCORR_MEMBER ptrdiff_t patches_in(ptrdiff_t tile) const { return tile + 1 < count ? width : patches - tile * width; }
};

// Sizes of one problem: a query map against a reference map.
struct MatchGeometry {
  ptrdiff_t patch_size;  // p >= 1
  ptrdiff_t channels;
  ptrdiff_t query_rows, query_cols;          // cells, each >= p
  ptrdiff_t reference_rows, reference_cols;  // cells, each >= p
  ColumnTiles query_tiles, reference_tiles;
  // Vector lanes that a query tile takes: its width + p - 1 cells, rounded up to whole vectors.
  ptrdiff_t query_lanes;

  TFCORR_MEMBER ptrdiff_t halo() const { return patch_size - 1; }
  TFCORR_MEMBER ptrdiff_t query_patch_rows() const { return query_rows - halo(); }
  TFCORR_MEMBER ptrdiff_t reference_patch_rows() const { return reference_rows - halo(); }
};

// The best match so far of every query patch: score without the query's norm (-inf: none yet), and index.
// Both are (query patch rows, query tiles, query_lanes); lanes behind a tile's patches are never read.
struct RunningMaximum {
  float* score;
  int32_t* index;
};

// A stretch of one or two neighbouring diagonals (reference row - query row = d) through one pair of tiles.
struct MatchWalk {
  ptrdiff_t diagonal;                // the first
  ptrdiff_t diagonals;               // 1 or 2
  ptrdiff_t query_begin, query_end;  // rows of query patches
  ptrdiff_t query_tile, reference_tile;
};

struct MatchPatchesKernels {
  // Fills in the tiles for the four sizes of the maps, the patch size and the channels.
  void (*plan)(MatchGeometry* geometry);

  // Floats of the packed form of one query row, all tiles.
  ptrdiff_t (*packed_row_size)(const MatchGeometry& geometry);
  // Packs one row of the query map, (query_cols, channels).
  void (*pack_row)(const MatchGeometry& geometry, const float* row, float* packed);

  // Sum of the squares of the channels of each of `cells` cells, (cells, channels) -> (cells).
  void (*energy)(ptrdiff_t cells, ptrdiff_t channels, const float* features, float* energies);

  // Floats of scratch that `walk` needs.
  ptrdiff_t (*scratch_size)(const MatchGeometry& geometry);
  // Correlates along the diagonals and raises the running maximum. `packed_query` holds all packed rows; `reference`
  // is the map, a cell's channels every `reference_stride` floats; `weight` (reference patches) is 1 / (norm + 1e-5),
  // NaN for a patch that must not be chosen.
  void (*walk)(const MatchGeometry& geometry, const MatchWalk& walk, const float* packed_query,
               const float* reference, ptrdiff_t reference_stride, const float* weight, float* scratch,
               RunningMaximum maximum);
};

#if defined(__x86_64__)
namespace avx512 {
extern const MatchPatchesKernels kMatchPatchesKernels;
}
namespace avx2 {
extern const MatchPatchesKernels kMatchPatchesKernels;
}
#endif
namespace generic {
extern const MatchPatchesKernels kMatchPatchesKernels;
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_MATCH_PATCHES_H_
