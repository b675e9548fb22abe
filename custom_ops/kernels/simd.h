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
#error "Define TFCORR_ISA (avx512, avx2 or generic) before including simd.h; it names the namespace."
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

// The first `count` lanes only; the lanes behind read as zero. Slow: for the ends of rows.
template <class V, class T>
TFCORR_INLINE V load_first(const T* source, ptrdiff_t count) {
  V vector = {};
  for (ptrdiff_t i = 0; i < count; ++i) vector[i] = source[i];
  return vector;
}

template <class V, class T>
TFCORR_INLINE void store_first(T* target, V vector, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) target[i] = vector[i];
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

// Lane by lane `a > b ? a : b` (b where either is NaN).
template <class V>
TFCORR_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}

template <class V>
TFCORR_INLINE V minimum(V a, V b) {
  return a < b ? a : b;
}

TFCORR_INLINE ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace TFCORR_ISA
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_SIMD_H_
