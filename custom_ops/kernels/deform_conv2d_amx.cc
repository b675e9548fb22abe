#if defined(__x86_64__)
#define TFCORR_ISA amx
#define TFCORR_TILES
#include "deform_conv2d_kernel.inc"

namespace tfcorr {
namespace amx {

extern bool TilesAgree();

// A product of 19 x 37 x 21 in two parts, on tiles and by a loop.
bool TilesAgree() {
  constexpr ptrdiff_t kM = 19, kK = 37, kN = 21, kRowsFilled = 32, kColumnsFilled = 32;
  float a[kM][kK], b[kK][kN], columns[kTileRows][kK], c[kRowsFilled][kColumnsFilled];
  alignas(64) float packed[kColumnsFilled * 64 + 16], tiles[kRowsFilled * 64];
  uint32_t state = 1;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  };
  for (auto& row : a) {
    for (float& value : row) value = next();
  }
  for (auto& row : b) {
    for (float& value : row) value = next();
  }
  for (auto& row : c) {
    for (float& value : row) value = 1.0f;
  }
  for (ptrdiff_t p = 0; p < kK; p += 2) {
    pack_pair(p, kK, kN, 2, b[p], p + 1 < kK ? b[p + 1] : nullptr, packed);
  }
  pack_end(kK, kN, 2, false, packed);
  configure_tiles();
  for (ptrdiff_t i = 0; i < kM; i += kTileRows) {
    const ptrdiff_t rows = kM - i < kTileRows ? kM - i : kTileRows;
    __builtin_memcpy(columns, a[i], rows * sizeof(a[0]));
    pack_rows<2>(rows, kN, kK, columns[0], kK, tiles + i / kTileRows * strip_values(kK, 2) / 2, packed, c[i],
                 kColumnsFilled);
  }
  multiply_tiles<2>(kM, kN, kK, tiles, packed, c[0], kColumnsFilled);
  release_tiles();
  for (ptrdiff_t i = 0; i < kM; ++i) {
    for (ptrdiff_t j = 0; j < kN; ++j) {
      double want = 1.0, size = 1.0;
      for (ptrdiff_t p = 0; p < kK; ++p) {
        want += static_cast<double>(a[i][p]) * b[p][j];
        size += __builtin_fabs(static_cast<double>(a[i][p]) * b[p][j]);
      }
      if (!(__builtin_fabs(c[i][j] - want) <= 2e-5 * size)) return false;
    }
  }
  return true;
}

}  // namespace amx
}  // namespace tfcorr
#endif  // __x86_64__
