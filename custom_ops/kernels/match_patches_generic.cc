#define TFCORR_ISA generic
#include "match_patches_kernel.inc"
