// The index arithmetic of the GPU's kernels (custom_ops/cuda/index.h) against loops, on the host: needs no GPU and no
// CUDA. Prints what is wrong and exits with 1, or prints "ok".

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <set>
#include <tuple>
#include <vector>

#include "cuda/index.h"
#include "deform_conv2d_geometry.h"

using namespace tfcorr;       // NOLINT
using namespace tfcorr::gpu;  // NOLINT

#define EXPECT(condition)                                                       \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition);      \
      std::exit(1);                                                             \
    }                                                                           \
  } while (false)

DeformShape Shape(int64_t batch, int64_t height, int64_t width, int64_t groups, int64_t wide, int64_t kh, int64_t kw,
                  int64_t out_height, int64_t out_width) {
  DeformShape s = {};
  s.batch = batch;
  s.height = height;
  s.width = width;
  s.groups = groups;
  s.channels = groups * wide;
  s.kernel_height = kh;
  s.kernel_width = kw;
  s.out_height = out_height;
  s.out_width = out_width;
  s.out_channels = 5;
  s.stride_y = 2;
  s.stride_x = 1;
  s.dilation_y = 1;
  s.dilation_x = 3;
  s.pad_top = 1;
  s.pad_left = 2;
  return s;
}

void TestPixelsAndColumns() {
  const DeformShape s = Shape(3, 4, 5, 2, 3, 2, 3, 7, 6);
  uint32_t p = 0;
  for (int b = 0; b < 3; ++b) {
    for (int y = 0; y < 7; ++y) {
      for (int x = 0; x < 6; ++x, ++p) {
        const Pixel pixel = PixelAt(s, p);
        EXPECT(pixel.b == b && pixel.y == y && pixel.x == x);
      }
    }
  }
  // Columns are (group, tap, channel); rows of the kernel (tap, group, channel): each row exactly once.
  uint32_t column = 0;
  std::set<int64_t> rows;
  for (int group = 0; group < 2; ++group) {
    for (int tap = 0; tap < 6; ++tap) {
      for (int channel = 0; channel < 3; ++channel, ++column) {
        const Column found = ColumnAt(6, 3, column);
        EXPECT(found.group == group && found.tap == tap && found.channel == channel);
        EXPECT(KernelRow(s, found) == (tap * 2 + group) * 3 + channel);
        rows.insert(KernelRow(s, found));
      }
    }
  }
  EXPECT(rows.size() == column && *rows.begin() == 0 && *rows.rbegin() == column - 1);
  // The largest pixel that FitsGpu lets through.
  DeformShape large = Shape(1, 4, 4, 1, 1, 1, 1, 1, (int64_t{1} << 31) - 1);
  EXPECT(FitsGpu(large));
  EXPECT(PixelAt(large, 0x7ffffffe).x == 0x7ffffffe);
  ++large.out_width;
  EXPECT(!FitsGpu(large));
}

// The bilinear sample as the sum over all pixels of their tent functions, in float64.
void TestCells() {
  const DeformShape s = Shape(1, 4, 5, 1, 1, 2, 3, 3, 3);
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> shifts = {std::nanf(""), infinity, -infinity, 3e38f, -3e38f, 2147483648.0f, 1e-41f, -1e-41f};
  for (float shift = -6.0f; shift <= 8.0f; shift += 0.25f) shifts.push_back(shift);
  shifts.push_back(std::nextafter(-1.0f, 0.0f));
  for (int oy = 0; oy < 3; ++oy) {
    for (int tap = 0; tap < 6; ++tap) {
      for (const float dy : shifts) {
        for (const float dx : shifts) {
          const int ox = (oy + tap) % 3;
          const Cell cell = CellAt(s, oy, ox, tap, dy, dx);
          const float y = static_cast<float>(oy * 2 - 1 + tap / 3) + dy;
          const float x = static_cast<float>(ox - 2 + tap % 3 * 3) + dx;
          EXPECT(cell.inside == (y > -1 && y < 4 && x > -1 && x < 5));
          std::vector<double> weights(20);
          for (int i = 0; i < 4; ++i) {
            if (!CornerIsInside(s, cell, i)) continue;
            const int64_t at = CornerAt(s, cell, 0, i);
            EXPECT(at >= 0 && at < 20);
            weights[at] += CornerWeight(cell, i);
          }
          for (int at = 0; at < 20; ++at) {
            double want = 0;
            if (cell.inside) {
              want = std::fmax(0.0, 1 - std::fabs(static_cast<double>(y) - at / 5)) *
                     std::fmax(0.0, 1 - std::fabs(static_cast<double>(x) - at % 5));
            }
            EXPECT(std::fabs(weights[at] - want) < 1e-6);
          }
        }
      }
    }
  }
  // Of the second image, with several channels.
  const DeformShape two = Shape(2, 4, 5, 1, 7, 1, 1, 1, 1);
  EXPECT(CornerAt(two, {true, 2, 3, 0.0f, 0.0f}, 1, 3) == ((1 * 4 + 3) * 5 + 4) * 7);
}

void TestSampleTiles() {
  for (int wide = 1; wide <= 200; ++wide) {
    const DeformShape s = Shape(1, 4, 5, 3, wide, 3, 2, 1, 1);
    const SampleTiles tiles = CutSampleTiles(s, 64);
    EXPECT(tiles.samples >= 1 && tiles.parts >= 1);
    EXPECT(tiles.samples == 1 || (tiles.parts == 1 && tiles.samples * wide <= 64));
    EXPECT(tiles.parts == 1 ? tiles.samples * wide <= 64 : (tiles.parts - 1) * 64 < wide && wide <= tiles.parts * 64);
    EXPECT((tiles.count - 1) * tiles.samples < 18 && 18 <= tiles.count * tiles.samples);
  }
}

void TestSlices() {
  for (int64_t count = 1; count < 500; ++count) {
    for (const int64_t most : {0, 1, 2, 7, 32}) {
      const Slices slices = CutSlices(count, 32, most);
      EXPECT(slices.size % 32 == 0 && slices.count >= 1 && (slices.count - 1) * slices.size < count);
      EXPECT(count <= slices.count * slices.size && (slices.count <= most || slices.count == 1));
    }
  }
}

// Every patch begins in exactly one tile, with all its cells; every pair of patch rows lies on one stretch.
void TestMatchTilesAndStretches() {
  for (const int64_t p : {1, 3, 5}) {
    for (int64_t columns = p; columns < 300; ++columns) {
      const MatchTiles tiles = CutMatchTiles(columns, p, 64);
      EXPECT(tiles.step + p - 1 == 64 && tiles.patches == columns - p + 1);
      EXPECT((tiles.count - 1) * tiles.step < tiles.patches && tiles.patches <= tiles.count * tiles.step);
    }
  }
  for (int64_t query = 1; query < 12; ++query) {
    for (int64_t reference = 1; reference < 12; ++reference) {
      for (const int64_t bands : {1, 2, 3}) {
        std::set<std::tuple<int64_t, int64_t>> seen;
        int64_t visited = 0;
        for (int64_t i = 0; i < bands * (query + reference - 1); ++i) {
          const MatchStretch stretch = StretchAt(i, bands, query, reference);
          EXPECT(stretch.begin <= stretch.end);
          for (int64_t row = stretch.begin; row < stretch.end; ++row, ++visited) {
            const int64_t partner = row + stretch.diagonal;
            EXPECT(row >= 0 && row < query && partner >= 0 && partner < reference);
            seen.insert({row, partner});
          }
        }
        EXPECT(visited == query * reference && static_cast<int64_t>(seen.size()) == visited);
      }
    }
  }
}

void TestMatchKeys() {
  const float infinity = std::numeric_limits<float>::infinity();
  const float scores[] = {-infinity, -3e38f, -1.0f, -1e-41f, 0.0f, 1e-41f, 0.5f, 1.0f, 3e38f, infinity};
  const int32_t indices[] = {0, 1, 77, std::numeric_limits<int32_t>::max()};
  EXPECT(ScoreOf(0) == -infinity && IndexOf(0) == 0);
  for (const float a : scores) {
    for (const int32_t i : indices) {
      const uint64_t key = MatchKey(a, i);
      EXPECT(key > 0 && ScoreOf(key) == a && IndexOf(key) == i);
      for (const float b : scores) {
        for (const int32_t j : indices) EXPECT((key > MatchKey(b, j)) == (a > b || (a == b && i < j)));
      }
    }
  }
  EXPECT(MatchKey(-0.0f, 5) == MatchKey(0.0f, 5));
}

int main() {
  TestPixelsAndColumns();
  TestCells();
  TestSampleTiles();
  TestSlices();
  TestMatchTilesAndStretches();
  TestMatchKeys();
  std::printf("ok\n");
  return 0;
}
