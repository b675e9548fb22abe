// Matrix product of one cache-sized block on tiles of bfloat16, C += A B, on one thread, between configure_tiles() and
// release_tiles(). What gemm.h is for float vectors.
//
// In one part, A and B are rounded to bfloat16. In two parts, each is the sum of a high part, rounded, and a low one,
// the rounded rest, and the product is low high + high high + high low: the low low left out, and the rounding of low
// parts, are at most 3 * 2^-18 of each product (float32 rounds at 2^-24).
//
//     bad |= pack_pair(p, k, n, parts, first, second, packed);    // rows p and p + 1 of B, for all even p < k
//     pack_end(k, n, parts, bad, packed);                         // once they are
//     pack_rows<parts>(m, n, k, a, lda, tiles, packed, c, ldc);   // up to 16 rows of A
//     multiply_tiles<parts>(m, n, k, tiles, packed, c, ldc);      // all that were packed
//
// All sides are filled up with zeros: m and n to multiples of 16, k to one of 32. C has so many rows and columns, and
// what lies beyond m and n is not to be read.
//
// Infinities and NaN: a value that is neither has finite parts (one too large for bfloat16 is cut, not rounded, so
// that it does not become infinite). An infinity has a low part of zero, which times another infinity would be NaN. So
// rows of A with such values stay out of the tiles, and all rows where B has one: pack_rows adds their products in
// float32, which gives what gemm.h would.
// Values below the normal numbers (1.2e-38) count as zero.
#ifndef TFCORR_CUSTOM_OPS_KERNELS_GEMM_AMX_H_
#define TFCORR_CUSTOM_OPS_KERNELS_GEMM_AMX_H_

#include "simd.h"
#include "tiles.h"

namespace tfcorr {
namespace TFCORR_ISA {

typedef uint32_t BitsVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

constexpr ptrdiff_t kTileColumns = 16;
constexpr ptrdiff_t kTileDepth = 32;
constexpr ptrdiff_t kTileValues = 512;  // Of A or B, bfloat16: 1 KB.

// A and B are sequences of tiles: for 16 rows of A, or 16 columns of B, the high parts of all k, then the low ones.
TFCORR_INLINE ptrdiff_t depth_tiles(ptrdiff_t k) { return (k + kTileDepth - 1) / kTileDepth; }
TFCORR_INLINE ptrdiff_t strip_values(ptrdiff_t k, int parts) { return parts * depth_tiles(k) * kTileValues; }

// Floats that the tiles of m rows of A take, and B, in two parts at most. Behind B's tiles stands whether it has
// infinities or NaN.
TFCORR_INLINE ptrdiff_t rows_size(ptrdiff_t m, ptrdiff_t k) { return round_up(m, kTileRows) * round_up(k, kTileDepth); }
TFCORR_INLINE ptrdiff_t packed_tiles_size(ptrdiff_t k, ptrdiff_t n) {
  return round_up(n, kTileColumns) * round_up(k, kTileDepth) + 16;
}
TFCORR_INLINE ptrdiff_t flag_of(ptrdiff_t k, ptrdiff_t n) { return packed_tiles_size(k, n) - 16; }

TFCORR_INLINE BitsVec bits_of(Vec value) {
  BitsVec bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}
TFCORR_INLINE Vec floats_of(BitsVec bits) {
  Vec value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Lanes of -1 for infinities and NaN.
TFCORR_INLINE IntVec irregular(Vec value) {
  return (bits_of(value) & 0x7fffffffu) >= BitsVec{} + 0x7f800000u;
}
TFCORR_INLINE bool any_lane(IntVec mask) {
  int32_t joined = 0;
  for (int i = 0; i < kLanes; ++i) joined |= mask[i];
  return joined != 0;
}

// The high and the low part of a float, as bfloat16 in the lower halves of the lanes: to the nearest, ties to even.
TFCORR_INLINE BitsVec rounded(Vec value) {
  const BitsVec bits = bits_of(value);
  const BitsVec size = bits & 0x7fffffffu;
  const BitsVec cut = bits >> 16;
  const BitsVec large = size > BitsVec{} + 0x7f800000u ? cut | 0x40u : cut;  // NaN stays NaN.
  return size >= BitsVec{} + 0x7f7f8000u ? large : (bits + 0x7fffu + (cut & 1u)) >> 16;
}
TFCORR_INLINE BitsVec rounded_rest(Vec value, BitsVec high) {
  return irregular(value) ? BitsVec{} : rounded(value - floats_of(high << 16));
}

// Rows p and p + 1 of B, p even, each n floats, or null for zeros. Returns whether one is infinite or NaN.
static bool pack_pair(ptrdiff_t p, ptrdiff_t k, ptrdiff_t n, int parts, const float* first, const float* second,
                      float* packed) {
  uint32_t* const strips = reinterpret_cast<uint32_t*>(packed);
  const ptrdiff_t low = depth_tiles(k) * kTileValues / 2;
  uint32_t* target = strips + p / kTileDepth * (kTileValues / 2) + p % kTileDepth / 2 * kTileColumns;
  IntVec bad = {};
  for (ptrdiff_t o = 0; o < n; o += kTileColumns, target += strip_values(k, parts) / 2) {
    float values[2][kTileColumns] = {};
    const ptrdiff_t width = n - o < kTileColumns ? n - o : kTileColumns;
    if (first) __builtin_memcpy(values[0], first + o, width * sizeof(float));
    if (second) __builtin_memcpy(values[1], second + o, width * sizeof(float));
    for (ptrdiff_t i = 0; i < kTileColumns; i += kLanes) {
      const Vec one = load<Vec>(values[0] + i);
      const Vec two = load<Vec>(values[1] + i);
      const BitsVec high_one = rounded(one);
      const BitsVec high_two = rounded(two);
      store(target + i, high_one | high_two << 16);
      if (parts == 2) store(target + low + i, rounded_rest(one, high_one) | rounded_rest(two, high_two) << 16);
      bad |= irregular(one) | irregular(two);
    }
  }
  return any_lane(bad);
}

// What follows the pairs: zeros, and whether a row was infinite or NaN.
static void pack_end(ptrdiff_t k, ptrdiff_t n, int parts, bool bad, float* packed) {
  for (ptrdiff_t p = round_up(k, 2); p < round_up(k, kTileDepth); p += 2) {
    pack_pair(p, k, n, parts, nullptr, nullptr, packed);
  }
  packed[flag_of(k, n)] = bad ? 1.0f : 0.0f;
}

// One row of C += A B in float32, from the packed form of B.
template <int kParts>
static void multiply_irregular(ptrdiff_t n, ptrdiff_t k, const float* a, const float* packed, float* c) {
  const ptrdiff_t low = depth_tiles(k) * kTileValues / 2;
  const uint32_t* strip = reinterpret_cast<const uint32_t*>(packed);
  for (ptrdiff_t o = 0; o < n; o += kTileColumns, strip += strip_values(k, kParts) / 2) {
    for (ptrdiff_t i = 0; i < kTileColumns; i += kLanes) {
      Vec sum = load<Vec>(c + o + i);
      for (ptrdiff_t p = 0; p < k; ++p) {
        const uint32_t* pair = strip + p / kTileDepth * (kTileValues / 2) + p % kTileDepth / 2 * kTileColumns + i;
        const auto half = [p](BitsVec bits) { return floats_of(p % 2 == 0 ? bits << 16 : bits & 0xffff0000u); };
        Vec b = half(load<BitsVec>(pair));
        if (kParts == 2) b += half(load<BitsVec>(pair + low));
        sum = fma(broadcast<Vec>(a[p]), b, sum);
      }
      store(c + o + i, sum);
    }
  }
}

// The tiles of up to 16 rows of A, each of k floats; and the products of rows that the tiles leave out.
template <int kParts>
static void pack_rows(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const float* a, ptrdiff_t lda, float* tiles,
                      const float* packed, float* c, ptrdiff_t ldc) {
  uint16_t* const high = reinterpret_cast<uint16_t*>(tiles);
  uint16_t* const low = high + depth_tiles(k) * kTileValues;
  const bool all = packed[flag_of(k, n)] != 0.0f;
  for (ptrdiff_t row = 0; row < kTileRows; ++row, a += lda, c += ldc) {
    const bool real = row < m;
    IntVec bad = {};
    for (ptrdiff_t p = 0; p < round_up(k, kTileDepth); p += kTileDepth) {
      const ptrdiff_t at = p * kTileRows + row * kTileDepth;
      float filled[kTileDepth] = {};
      const float* source = filled;
      if (real && p + kTileDepth <= k) {
        source = a + p;
      } else if (real) {
        __builtin_memcpy(filled, a + p, (k - p) * sizeof(float));
      }
      for (ptrdiff_t i = 0; i < kTileDepth; i += kLanes) {
        const Vec value = load<Vec>(source + i);
        const BitsVec upper = rounded(value);
        store(high + at + i, __builtin_convertvector(upper, HalfVec));
        if (kParts == 2) store(low + at + i, __builtin_convertvector(rounded_rest(value, upper), HalfVec));
        bad |= irregular(value);
      }
    }
    if (!real || !(all || any_lane(bad))) continue;
    multiply_irregular<kParts>(n, k, a, packed, c);
    for (ptrdiff_t p = 0; p < round_up(k, kTileDepth); p += kTileDepth) {
      const ptrdiff_t at = p * kTileRows + row * kTileDepth;
      __builtin_memset(high + at, 0, kTileDepth * sizeof(uint16_t));
      if (kParts == 2) __builtin_memset(low + at, 0, kTileDepth * sizeof(uint16_t));
    }
  }
}

// kM x kN tiles of C, in tiles 0 to 3; A goes through 4 and 5, B through 6 and 7.
template <int kM, int kN>
TFCORR_INLINE void load_a(const uint16_t* a, ptrdiff_t strip) {
  tile_load<4>(a, kTileRowBytes);
  if (kM == 2) tile_load<5>(a + strip, kTileRowBytes);
}
template <int kM, int kN>
TFCORR_INLINE void load_b(const uint16_t* b, ptrdiff_t strip) {
  tile_load<6>(b, kTileRowBytes);
  if (kN == 2) tile_load<7>(b + strip, kTileRowBytes);
}
template <int kM, int kN>
TFCORR_INLINE void multiply_loaded() {
  tile_multiply<0, 4, 6>();
  if (kN == 2) tile_multiply<1, 4, 7>();
  if (kM == 2) tile_multiply<2, 5, 6>();
  if (kM == 2 && kN == 2) tile_multiply<3, 5, 7>();
}

template <int kParts, int kM, int kN>
static void multiply_tile_block(ptrdiff_t k, const uint16_t* a, const uint16_t* b, float* c, ptrdiff_t ldc) {
  const ptrdiff_t row_bytes = ldc * static_cast<ptrdiff_t>(sizeof(float));
  const ptrdiff_t strip = strip_values(k, kParts);
  const ptrdiff_t low = depth_tiles(k) * kTileValues;
  tile_load<0>(c, row_bytes);
  if (kN == 2) tile_load<1>(c + kTileColumns, row_bytes);
  if (kM == 2) tile_load<2>(c + kTileRows * ldc, row_bytes);
  if (kM == 2 && kN == 2) tile_load<3>(c + kTileRows * ldc + kTileColumns, row_bytes);
  for (ptrdiff_t p = 0; p < low; p += kTileValues) {
    load_b<kM, kN>(b + p, strip);
    if (kParts == 2 && has_pass(0)) {
      load_a<kM, kN>(a + low + p, strip);
      multiply_loaded<kM, kN>();
    }
    load_a<kM, kN>(a + p, strip);
    if (has_pass(1)) multiply_loaded<kM, kN>();
    if (kParts == 2 && has_pass(2)) {
      load_b<kM, kN>(b + low + p, strip);
      multiply_loaded<kM, kN>();
    }
  }
  tile_store<0>(c, row_bytes);
  if (kN == 2) tile_store<1>(c + kTileColumns, row_bytes);
  if (kM == 2) tile_store<2>(c + kTileRows * ldc, row_bytes);
  if (kM == 2 && kN == 2) tile_store<3>(c + kTileRows * ldc + kTileColumns, row_bytes);
}

// C += A B for m rows, tiles and B packed as above.
template <int kParts>
static void multiply_tiles(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const float* tiles, const float* packed, float* c,
                           ptrdiff_t ldc) {
  // Then pack_rows has added all rows, and zeros of A times infinities of B would be NaN.
  if (packed[flag_of(k, n)] != 0.0f) return;
  const ptrdiff_t strip = strip_values(k, kParts);
  for (ptrdiff_t i = 0; i < m; i += 2 * kTileRows) {
    const uint16_t* a = reinterpret_cast<const uint16_t*>(tiles) + i / kTileRows * strip;
    const bool two = i + kTileRows < m;
    for (ptrdiff_t j = 0; j < n; j += 2 * kTileColumns) {
      const uint16_t* b = reinterpret_cast<const uint16_t*>(packed) + j / kTileColumns * strip;
      float* const block = c + i * ldc + j;
      if (j + kTileColumns < n) {
        two ? multiply_tile_block<kParts, 2, 2>(k, a, b, block, ldc)
            : multiply_tile_block<kParts, 1, 2>(k, a, b, block, ldc);
      } else {
        two ? multiply_tile_block<kParts, 2, 1>(k, a, b, block, ldc)
            : multiply_tile_block<kParts, 1, 1>(k, a, b, block, ldc);
      }
    }
  }
}

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_GEMM_AMX_H_
