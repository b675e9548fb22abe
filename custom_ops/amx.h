// Whether the kernels for AMX (kernels/tiles.h) can run in this process.
#ifndef TFCORR_CUSTOM_OPS_AMX_H_
#define TFCORR_CUSTOM_OPS_AMX_H_

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace tfcorr {

#if defined(__x86_64__)
namespace amx {
extern bool TilesAgree();  // kernels/deform_conv2d_amx.cc
}
#endif

// The processor has tiles of bfloat16, the operating system keeps them for threads and lets this process use them, and
// a product computes what a loop does. Asked once; the permission holds for all threads. The kernel refuses it where a
// thread has a signal stack too small for the tiles.
inline bool AmxServes() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  static const bool serves = [] {
    constexpr uint32_t kSaves = 1u << 27;                   // Leaf 1, ECX: the operating system uses XSAVE.
    constexpr uint32_t kBfloat16 = 1u << 22, kTile = 1u << 24;   // Leaf 7, EDX.
    constexpr uint32_t kTileStates = 1u << 17 | 1u << 18;   // XCR0: configuration and data.
    constexpr int kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, since Linux 5.16.
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kSaves) == 0) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx & (kBfloat16 | kTile)) != (kBfloat16 | kTile)) return false;
    asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    if ((eax & kTileStates) != kTileStates) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 && amx::TilesAgree();
  }();
  return serves;
#else
  return false;
#endif
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_AMX_H_
