// Matrix registers ("tiles") for bfloat16 products with float32 sums: Intel's AMX, or an emulation of it.
//
//     configure_tiles();              // before the others, in every thread
//     tile_load<N>(memory, stride);   // 16 rows of 64 bytes, `stride` bytes apart, into tile N (0 to 7)
//     tile_multiply<C, A, B>();       // C += A B
//     tile_store<N>(memory, stride);
//     release_tiles();                // soon: until then the operating system saves 8 KB more for the thread
//
// C and its sums are 16 x 16 floats. A is 16 x 32 bfloat16. B is 32 x 16 bfloat16 with two rows interleaved: its row r
// in memory holds, for each column, the values of rows 2r and 2r + 1.
//
// The instructions are written as bytes, so that any compiler and assembler for x86-64 builds them and no other code
// can be given instructions that only a few processors have; a test reads them back with objdump. The compiler knows
// nothing of tiles, but the assembly is volatile, which keeps it in order, and says that it reads and writes memory:
// without that, stores to what a tile is loaded from may come too late or never (so with g++ 12's _tile_loadconfig).
// What processors do is not checked here: who calls makes sure that this one has the instructions (../amx.h).
#ifndef TFCORR_CUSTOM_OPS_KERNELS_TILES_H_
#define TFCORR_CUSTOM_OPS_KERNELS_TILES_H_

#include "simd.h"

namespace tfcorr {
namespace TFCORR_ISA {

constexpr int kTiles = 8;
constexpr ptrdiff_t kTileRows = 16;
constexpr ptrdiff_t kTileRowBytes = 64;

#if !defined(TFCORR_EMULATE_TILES)

// The 64 bytes that `ldtilecfg` reads.
struct TileShapes {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64, "the processor reads 64 bytes");

TFCORR_INLINE void configure_tiles() {
  TileShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < kTiles; ++i) {
    shapes.row_bytes[i] = kTileRowBytes;
    shapes.rows[i] = kTileRows;
  }
  // ldtilecfg (%rax)
  asm volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0x00" : : "a"(&shapes), "m"(shapes) : "memory");
}

// tilerelease
TFCORR_INLINE void release_tiles() { asm volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0" : : : "memory"); }

template <int kTile>
TFCORR_INLINE void tile_load(const void* memory, ptrdiff_t stride) {
  static_assert(kTile >= 0 && kTile < kTiles, "there are eight tiles");
  // tileloadd (%rax, %rdx, 1), %tmm<kTile>
  asm volatile(".byte 0xc4, 0xe2, 0x7b, 0x4b, %c0, 0x10"
               :
               : "i"(0x04 + 8 * kTile), "a"(memory), "d"(stride)
               : "memory");
}

template <int kTile>
TFCORR_INLINE void tile_store(void* memory, ptrdiff_t stride) {
  static_assert(kTile >= 0 && kTile < kTiles, "there are eight tiles");
  // tilestored %tmm<kTile>, (%rax, %rdx, 1)
  asm volatile(".byte 0xc4, 0xe2, 0x7a, 0x4b, %c0, 0x10"
               :
               : "i"(0x04 + 8 * kTile), "a"(memory), "d"(stride)
               : "memory");
}

template <int kC, int kA, int kB>
TFCORR_INLINE void tile_multiply() {
  static_assert(kC >= 0 && kA >= 0 && kB >= 0 && kC < kTiles && kA < kTiles && kB < kTiles, "there are eight tiles");
  static_assert(kC != kA && kC != kB && kA != kB, "an invalid instruction otherwise");
  // tdpbf16ps %tmm<kB>, %tmm<kA>, %tmm<kC>
  asm volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" : : "i"(0x02 + 8 * (15 - kB)), "i"(0xc0 + 8 * kC + kA));
}

// Whether a product in several passes has this one.
TFCORR_INLINE bool has_pass(int) { return true; }

#else  // TFCORR_EMULATE_TILES

// As Intel's manual describes the instructions. A product goes over the pairs of k in rising order with two sums for
// each element of C, one of the pairs' first members and one of their second, each step a fused multiplication and
// addition rounded to the nearest; the two sums are added, then their sum to C. Values below the normal numbers are
// read as zeros and written as zeros, whatever the thread's mode. (Here a result that rounds to the smallest normal
// number from less than it stays; the manual does not say.) Like the processor, it refuses tiles without configuration.
struct Emulation {
  bool configured;
  unsigned char tiles[kTiles][kTileRows][kTileRowBytes];
};
inline Emulation& emulation() {
  static thread_local Emulation state = {};
  return state;
}
// A bit for each pass of a product: one that is 0 is left out, to see that tests notice.
inline int emulated_passes = ~0;

inline Emulation& configured_tiles() {
  if (!emulation().configured) __builtin_trap();
  return emulation();
}

inline void configure_tiles() {
  emulation() = Emulation{};
  emulation().configured = true;
}
inline void release_tiles() { emulation().configured = false; }

template <int kTile>
void tile_load(const void* memory, ptrdiff_t stride) {
  static_assert(kTile >= 0 && kTile < kTiles, "there are eight tiles");
  for (ptrdiff_t row = 0; row < kTileRows; ++row) {
    __builtin_memcpy(configured_tiles().tiles[kTile][row], static_cast<const char*>(memory) + row * stride,
                     kTileRowBytes);
  }
}

template <int kTile>
void tile_store(void* memory, ptrdiff_t stride) {
  static_assert(kTile >= 0 && kTile < kTiles, "there are eight tiles");
  for (ptrdiff_t row = 0; row < kTileRows; ++row) {
    __builtin_memcpy(static_cast<char*>(memory) + row * stride, configured_tiles().tiles[kTile][row], kTileRowBytes);
  }
}

TFCORR_INLINE float flushed(float value) {
  return __builtin_fabsf(value) < 1.17549435e-38f ? __builtin_copysignf(0.0f, value) : value;
}

TFCORR_INLINE float widened(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return flushed(value);
}

template <int kC, int kA, int kB>
void tile_multiply() {
  static_assert(kC != kA && kC != kB && kA != kB, "an invalid instruction otherwise");
  Emulation& state = configured_tiles();
  uint32_t pairs_b[16][16];
  float b[2][16][16];
  __builtin_memcpy(pairs_b, state.tiles[kB], sizeof(pairs_b));
  for (ptrdiff_t k = 0; k < 16; ++k) {
    for (ptrdiff_t n = 0; n < 16; ++n) {
      b[0][k][n] = widened(pairs_b[k][n] << 16);
      b[1][k][n] = widened(pairs_b[k][n] & 0xffff0000u);
    }
  }
  for (ptrdiff_t row = 0; row < kTileRows; ++row) {
    uint32_t pairs_a[16];
    float c[16], first[16] = {}, second[16] = {};
    __builtin_memcpy(pairs_a, state.tiles[kA][row], sizeof(pairs_a));
    __builtin_memcpy(c, state.tiles[kC][row], sizeof(c));
    for (ptrdiff_t k = 0; k < 16; ++k) {
      const float a0 = widened(pairs_a[k] << 16), a1 = widened(pairs_a[k] & 0xffff0000u);
      for (ptrdiff_t n = 0; n < 16; ++n) first[n] = flushed(__builtin_fmaf(a0, b[0][k][n], first[n]));
      for (ptrdiff_t n = 0; n < 16; ++n) second[n] = flushed(__builtin_fmaf(a1, b[1][k][n], second[n]));
    }
    for (ptrdiff_t n = 0; n < 16; ++n) c[n] = flushed(flushed(c[n]) + flushed(first[n] + second[n]));
    __builtin_memcpy(state.tiles[kC][row], c, sizeof(c));
  }
}

inline bool has_pass(int pass) { return (emulated_passes >> pass & 1) != 0; }

#endif  // TFCORR_EMULATE_TILES

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_TILES_H_
