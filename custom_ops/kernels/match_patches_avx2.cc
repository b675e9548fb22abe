#if defined(__x86_64__)
#define TFCORR_ISA avx2
#include "match_patches_kernel.inc"
#endif
