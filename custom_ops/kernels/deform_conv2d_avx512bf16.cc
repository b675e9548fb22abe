#if defined(__x86_64__)
#define TFCORR_ISA avx512bf16
#define TFCORR_DOT_PRODUCTS
#include "deform_conv2d_kernel.inc"
#endif  // __x86_64__
