#if defined(__x86_64__)
#define TFCORR_ISA avx512
#include "match_patches_kernel.inc"
#endif
