#if defined(__x86_64__)
#define TFCORR_ISA avx2
#include "deform_conv2d_kernel.inc"
#endif  // __x86_64__
