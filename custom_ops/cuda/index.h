// Index arithmetic of the GPU's kernels, for the host too: tests/cuda/index_test.cc compiles it with any C++ compiler
// and compares it with loops.
#ifndef TFCORR_CUSTOM_OPS_CUDA_INDEX_H_
#define TFCORR_CUSTOM_OPS_CUDA_INDEX_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/deform_conv2d.h"

#if defined(__CUDACC__)
#define TFCORR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TFCORR_HOST_DEVICE inline
#endif

namespace tfcorr {
namespace gpu {

TFCORR_HOST_DEVICE int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
TFCORR_HOST_DEVICE int64_t RoundUp(int64_t a, int64_t b) { return DivideUp(a, b) * b; }

// ---------------------------------------------------------------------------------------------------------------
// Deformable convolution. A *sample* is a (group, tap); a *column* is a (sample, channel of the group): the columns of
// one output pixel, in this order, are a row of the im2col matrix.

// Whether pixels and columns can be counted by 32 bits, in which divisions are cheap, and by the blocks of a grid.
TFCORR_HOST_DEVICE bool FitsGpu(const DeformShape& s) {
  const int64_t samples = s.groups * s.kernel_height * s.kernel_width;
  return s.batch * s.out_height * s.out_width < int64_t{1} << 31 && samples < 65536 && s.out_channels < int64_t{1} << 21 &&
         samples * (s.channels / s.groups) < int64_t{1} << 31;
}

struct Pixel {
  int32_t b, y, x;
};

// Output pixel number p of all images.
TFCORR_HOST_DEVICE Pixel PixelAt(const DeformShape& s, uint32_t p) {
  const uint32_t width = static_cast<uint32_t>(s.out_width), height = static_cast<uint32_t>(s.out_height);
  const uint32_t row = p / width;
  return {static_cast<int32_t>(row / height), static_cast<int32_t>(row % height), static_cast<int32_t>(p % width)};
}

// Where a sample falls. Outside of the image nothing but `inside` has a meaning.
struct Cell {
  bool inside;
  int32_t y, x;  // The upper left corner, from -1 on.
  float ly, lx;  // Position within the cell, [0, 1).
};

// The same sums in the same order as on the CPU, so that both round alike.
TFCORR_HOST_DEVICE Cell CellAt(const DeformShape& s, int32_t oy, int32_t ox, int32_t tap, float dy, float dx) {
  const int32_t kernel_width = static_cast<int32_t>(s.kernel_width);
  const int64_t first_y = oy * s.stride_y - s.pad_top, first_x = ox * s.stride_x - s.pad_left;
  const float y = (static_cast<float>(first_y) + static_cast<float>(tap / kernel_width * s.dilation_y)) + dy;
  const float x = (static_cast<float>(first_x) + static_cast<float>(tap % kernel_width * s.dilation_x)) + dx;
  Cell cell = {};
  // False for NaN, too.
  cell.inside = y > -1.0f && y < static_cast<float>(s.height) && x > -1.0f && x < static_cast<float>(s.width);
  if (cell.inside) {
    const float y0 = floorf(y), x0 = floorf(x);
    cell.y = static_cast<int32_t>(y0);
    cell.x = static_cast<int32_t>(x0);
    cell.ly = y - y0;
    cell.lx = x - x0;
  }
  return cell;
}

// Corner i of a cell: 0 upper left, 1 upper right, 2 lower left, 3 lower right.
TFCORR_HOST_DEVICE bool CornerIsInside(const DeformShape& s, const Cell& cell, int i) {
  const int32_t y = cell.y + i / 2, x = cell.x + i % 2;
  return cell.inside && y >= 0 && y < s.height && x >= 0 && x < s.width;
}
// The first channel of that pixel in x; only for corners inside.
TFCORR_HOST_DEVICE int64_t CornerAt(const DeformShape& s, const Cell& cell, int64_t b, int i) {
  return ((b * s.height + cell.y + i / 2) * s.width + cell.x + i % 2) * s.channels;
}
TFCORR_HOST_DEVICE float CornerWeight(const Cell& cell, int i) {
  return (i / 2 ? cell.ly : 1.0f - cell.ly) * (i % 2 ? cell.lx : 1.0f - cell.lx);
}

struct Column {
  int32_t group, tap, channel;  // The channel within its group.
};

TFCORR_HOST_DEVICE Column ColumnAt(uint32_t taps, uint32_t wide, uint32_t column) {
  const uint32_t sample = column / wide;
  return {static_cast<int32_t>(sample / taps), static_cast<int32_t>(sample % taps),
          static_cast<int32_t>(column % wide)};
}

// The row of the kernel, (kh, kw, C) flattened, that a column is multiplied with.
TFCORR_HOST_DEVICE int64_t KernelRow(const DeformShape& s, const Column& column) {
  return column.tap * s.channels + column.group * (s.channels / s.groups) + column.channel;
}

// The backward pass over samples takes tiles of 64 columns: as many whole samples as have room, or parts of one.
struct SampleTiles {
  int32_t samples;  // In a tile.
  int32_t parts;    // Tiles that one sample takes; more than 1 only if a tile has 1 sample.
  int64_t count;
};

TFCORR_HOST_DEVICE SampleTiles CutSampleTiles(const DeformShape& s, int32_t columns) {
  const int32_t wide = static_cast<int32_t>(s.channels / s.groups);
  SampleTiles tiles;
  tiles.samples = wide >= columns ? 1 : columns / wide;
  tiles.parts = static_cast<int32_t>(DivideUp(wide, columns));
  if (tiles.samples > 1) tiles.parts = 1;
  tiles.count = DivideUp(s.groups * s.kernel_height * s.kernel_width, tiles.samples);
  return tiles;
}

// Slices that `count` things are summed in, and the things of a slice, a multiple of `unit`. The numbers do not depend
// on the device, so neither does the result.
struct Slices {
  int64_t count, size;
};

TFCORR_HOST_DEVICE Slices CutSlices(int64_t count, int64_t unit, int64_t most) {
  Slices slices;
  slices.size = RoundUp(DivideUp(count, most < 1 ? 1 : most), unit);
  slices.count = DivideUp(count, slices.size);
  return slices;
}

// ---------------------------------------------------------------------------------------------------------------
// Patch matching.

// Tiles over the columns of a map: each has `cells` columns, the first `step` of which begin patches.
struct MatchTiles {
  int64_t cells, step, count, patches;
};

TFCORR_HOST_DEVICE MatchTiles CutMatchTiles(int64_t columns, int64_t patch_size, int64_t cells) {
  MatchTiles tiles;
  tiles.cells = cells;
  tiles.step = cells - patch_size + 1;
  tiles.patches = columns - patch_size + 1;
  tiles.count = DivideUp(tiles.patches, tiles.step);
  return tiles;
}

// A stretch of a diagonal: query patch rows [begin, end), each matched with the reference row `diagonal` further.
struct MatchStretch {
  int64_t diagonal, begin, end;
};

// Diagonals go from the query's last row against the reference's first to the reverse. Stretch number i of
// bands * diagonals, those of the longest diagonals first; it may be empty.
TFCORR_HOST_DEVICE MatchStretch StretchAt(int64_t i, int64_t bands, int64_t query_rows, int64_t reference_rows) {
  const int64_t diagonals = query_rows + reference_rows - 1;
  const int64_t band = i % bands, place = i / bands;
  const int64_t distance = (place + 1) / 2, middle = (diagonals - 1) / 2;
  const int64_t at = place % 2 == 1 ? middle + distance : middle - distance;
  MatchStretch stretch;
  stretch.diagonal = at - (query_rows - 1);
  const int64_t first = stretch.diagonal < 0 ? -stretch.diagonal : 0;
  const int64_t last = reference_rows - stretch.diagonal < query_rows ? reference_rows - stretch.diagonal : query_rows;
  stretch.begin = first + (last - first) * band / bands;
  stretch.end = first + (last - first) * (band + 1) / bands;
  return stretch;
}

// A score and an index as one number, larger for a better match: a higher score, or the same and a lower index. No
// match at all is 0. NaN is no score.
TFCORR_HOST_DEVICE uint64_t MatchKey(float score, int32_t index) {
  score += 0.0f;  // -0 and 0 are the same score.
  uint32_t bits;
  memcpy(&bits, &score, sizeof(bits));
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
TFCORR_HOST_DEVICE float ScoreOf(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = key == 0 ? 0xff800000u : ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  float score;
  memcpy(&score, &bits, sizeof(score));
  return score;
}
TFCORR_HOST_DEVICE int32_t IndexOf(uint64_t key) {
  return key == 0 ? 0 : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_INDEX_H_
