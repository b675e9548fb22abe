// Float vectors of the widest kind that the current translation unit may use, on GCC/Clang vector extensions.
//
// How the kernels are compiled: a kernel is written once, in `<name>_kernel.inc`, against this header, and compiled
// several times by tiny files `<name>_avx512.cc`, `<name>_avx2.cc` and `<name>_generic.cc`, each of which says
//
//     #define TFCORR_ISA avx512            // becomes the namespace tfcorr::avx512
//     #include "<name>_kernel.inc"
//
// and is compiled with the flags of its suffix. Every function lives in the namespace of its instruction set, and no
// TensorFlow, Eigen or STL header may be included here or there: a template of theirs compiled with AVX-512 could be
// the copy that the linker keeps for everybody, and would then crash an older processor.
#ifndef TFCORR_CUSTOM_OPS_KERNELS_SIMD_H_
#define TFCORR_CUSTOM_OPS_KERNELS_SIMD_H_

#include <stddef.h>
#include <stdint.h>

#ifndef TFCORR_ISA
#error "Define TFCORR_ISA (amx, avx512bf16, avx512, avx2 or generic) before including simd.h; it names the namespace."
#endif

#define TFCORR_INLINE static inline __attribute__((always_inline))

namespace tfcorr {
namespace TFCORR_ISA {

// Lanes of the native float vector, and registers there are to hold them.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2, NEON, or whatever the compiler makes of four floats.
#endif

typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec16 __attribute__((vector_size(64)));
typedef int32_t IntVec4 __attribute__((vector_size(16)));
typedef int32_t IntVec8 __attribute__((vector_size(32)));
typedef int32_t IntVec16 __attribute__((vector_size(64)));

// `VecOf<N>::Float` and `::Int` are vectors of N lanes. N may be below kLanes; above it the compiler has to split.
template <int N>
struct VecOf;
template <>
struct VecOf<4> {
  typedef Vec4 Float;
  typedef IntVec4 Int;
};
template <>
struct VecOf<8> {
  typedef Vec8 Float;
  typedef IntVec8 Int;
};
template <>
struct VecOf<16> {
  typedef Vec16 Float;
  typedef IntVec16 Int;
};

typedef VecOf<kLanes>::Float Vec;
typedef VecOf<kLanes>::Int IntVec;  // Also what comparisons of Vec give: -1 where true, 0 where false.

// The upper half of a float32.
struct Bfloat16 {
  uint16_t bits;
};

// Unaligned load and store of a whole vector (of any of the types above).
template <class V, class T>
TFCORR_INLINE V load(const T* source) {
  V vector;
  __builtin_memcpy(&vector, source, sizeof(V));
  return vector;
}

template <class V, class T>
TFCORR_INLINE void store(T* target, V vector) {
  __builtin_memcpy(target, &vector, sizeof(V));
}

// All lanes equal to `value`. (Subtracting +0 changes no float, so that compilers drop it; adding it would turn -0.)
template <class V, class T>
TFCORR_INLINE V broadcast(T value) {
  return value - V{};
}

// a * b + c; compilers contract this to one instruction where there is one.
template <class V>
TFCORR_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

// `mask ? a : b` for every lane; `mask` is the result of a comparison.
template <class M, class V>
TFCORR_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}

// Lane permutations with constant patterns. `__builtin_shufflevector` is Clang's, and GCC's from version 12 on.
#if defined(__clang__) || __GNUC__ >= 12
#define TFCORR_SHUFFLE(mask_type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TFCORR_SHUFFLE(mask_type, a, b, ...) __builtin_shuffle(a, b, mask_type{__VA_ARGS__})
#endif

// even_lanes(a, b) and odd_lanes(a, b) split the sequence a, b of pairs into first and second members;
// first_pairs(a, b), second_pairs(a, b) are the two halves of the sequence of pairs of lanes of a and b.
// sum_quarters(a, b, c, d): in every 128 bits, the four sums over these 128 bits of a, b, c and d.
// fold(v): the sum of all 128-bit quarters, one Vec4.
TFCORR_INLINE Vec4 even_lanes(Vec4 a, Vec4 b) { return TFCORR_SHUFFLE(IntVec4, a, b, 0, 2, 4, 6); }
TFCORR_INLINE Vec4 odd_lanes(Vec4 a, Vec4 b) { return TFCORR_SHUFFLE(IntVec4, a, b, 1, 3, 5, 7); }
TFCORR_INLINE Vec4 first_pairs(Vec4 a, Vec4 b) { return TFCORR_SHUFFLE(IntVec4, a, b, 0, 4, 1, 5); }
TFCORR_INLINE Vec4 second_pairs(Vec4 a, Vec4 b) { return TFCORR_SHUFFLE(IntVec4, a, b, 2, 6, 3, 7); }
TFCORR_INLINE Vec4 add_halves(Vec4 a, Vec4 b) {
  return TFCORR_SHUFFLE(IntVec4, a, b, 0, 4, 1, 5) + TFCORR_SHUFFLE(IntVec4, a, b, 2, 6, 3, 7);
}
TFCORR_INLINE Vec4 add_pairs(Vec4 a, Vec4 b) {
  return TFCORR_SHUFFLE(IntVec4, a, b, 0, 1, 4, 5) + TFCORR_SHUFFLE(IntVec4, a, b, 2, 3, 6, 7);
}
TFCORR_INLINE Vec4 fold(Vec4 v) { return v; }

#if defined(__AVX2__) || defined(__AVX512F__)
TFCORR_INLINE Vec8 even_lanes(Vec8 a, Vec8 b) { return TFCORR_SHUFFLE(IntVec8, a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
TFCORR_INLINE Vec8 odd_lanes(Vec8 a, Vec8 b) { return TFCORR_SHUFFLE(IntVec8, a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
TFCORR_INLINE Vec8 first_pairs(Vec8 a, Vec8 b) { return TFCORR_SHUFFLE(IntVec8, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
TFCORR_INLINE Vec8 second_pairs(Vec8 a, Vec8 b) { return TFCORR_SHUFFLE(IntVec8, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
TFCORR_INLINE Vec8 add_halves(Vec8 a, Vec8 b) {
  return TFCORR_SHUFFLE(IntVec8, a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
         TFCORR_SHUFFLE(IntVec8, a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
TFCORR_INLINE Vec8 add_pairs(Vec8 a, Vec8 b) {
  return TFCORR_SHUFFLE(IntVec8, a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
         TFCORR_SHUFFLE(IntVec8, a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
TFCORR_INLINE Vec4 fold(Vec8 v) {
  Vec4 quarters[2];
  __builtin_memcpy(quarters, &v, sizeof(v));
  return quarters[0] + quarters[1];
}
#endif

#if defined(__AVX512F__)
TFCORR_INLINE Vec16 even_lanes(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
TFCORR_INLINE Vec16 odd_lanes(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
TFCORR_INLINE Vec16 first_pairs(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
TFCORR_INLINE Vec16 second_pairs(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
TFCORR_INLINE Vec16 add_halves(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
         TFCORR_SHUFFLE(IntVec16, a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
TFCORR_INLINE Vec16 add_pairs(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         TFCORR_SHUFFLE(IntVec16, a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
TFCORR_INLINE Vec4 fold(Vec16 v) {
  Vec8 halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  return fold(halves[0] + halves[1]);
}
// The first eight lanes of a before those of b, and the last eight likewise.
TFCORR_INLINE Vec16 first_halves(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}
TFCORR_INLINE Vec16 second_halves(Vec16 a, Vec16 b) {
  return TFCORR_SHUFFLE(IntVec16, a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
#endif

template <class V>
TFCORR_INLINE V sum_quarters(V a, V b, V c, V d) {
  return add_pairs(add_halves(a, b), add_halves(c, d));
}

TFCORR_INLINE ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_SIMD_H_
