#define TFCORR_ISA generic
#include "deform_conv2d_kernel.inc"
