// Modulated deformable convolution on plain arrays: what the TensorFlow op (deform_conv2d_ops.cc) calls.
//
// The kernels are compiled once per instruction set (see kernels/simd.h); the op takes the table of the one
// that this processor runs best (see ../isa.h). Nothing here allocates memory or starts threads: the op does both, with
// TensorFlow's allocator and pool.
//
// Layouts, all row-major: x (B, H, W, C), kernel (kh, kw, C, O), offset (B, Ho, Wo, G, kh, kw, [dy, dx]) float32,
// mask (B, Ho, Wo, G, kh, kw), bias (O), output (B, Ho, Wo, O). `samples` below are the G * kh * kw bilinear
// samples that one output pixel takes.
#ifndef TFCORR_CUSTOM_OPS_KERNELS_DEFORM_CONV2D_H_
#define TFCORR_CUSTOM_OPS_KERNELS_DEFORM_CONV2D_H_

#include <stddef.h>
#include <stdint.h>

namespace tfcorr {

struct DeformShape {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width;
  int64_t stride_y, stride_x;
  int64_t dilation_y, dilation_x;
  int64_t pad_top, pad_left;
  int64_t groups;
};

// Type of x, kernel, mask, bias, output and their gradients. Offsets and sums are float32. Memory is
// counted in floats, whatever a kernel keeps in it.
enum DeformType { kDeformFloat = 0, kDeformBfloat16 = 1 };

// How the work is cut, and the memory (in floats) that the caller provides.
//
// The image of one group is repacked once to [B][G][H + 3][W + 2][group_channels], float32, its channels filled up
// with zeros to a multiple of the vector length and with a border of zeros: one before the first row and column, one
// behind the last, and one row more, where samples outside of the image point. Gathering needs no bounds then.
struct DeformLayout {
  int64_t group_channels;   // Channels of a group, filled up.
  int64_t row_stride;       // Floats from a row of the repacked image to the next.
  int64_t group_stride;     // ... from a group to the next.
  int64_t image_size;       // ... of all images together.
  int64_t image_rows;       // Rows of all images, B * (H + 3): units of pack_image and unpack_image.

  // A chunk of the columns: some whole groups, or some channels of one group.
  int64_t chunk_groups, chunk_channels, chunks_per_group, chunks;
  int64_t plan_groups;              // Groups whose samples are planned together, a multiple of chunk_groups or all.
  int64_t tile_rows, tile_columns;  // Output pixels in a tile.
  int64_t tiles_y;                  // Tiles of a strip, numbered downwards; strips from left to right.
  int64_t tiles_per_image;

  int64_t packed_kernel_size;
  int64_t forward_scratch;  // Per worker.

  // Backward: unit = (batch slice, some groups, channel part); each owns its part of the gradients of x and kernel.
  // Several parts only with one group a unit.
  int64_t unit_groups, part_channels, parts, slices, units;
  int64_t kernel_gradient_size;  // Of all slices: [slice][G][kh * kw][group_channels][O].
  int64_t sample_gradient_size;  // Of one part, if there are several: offset and mask gradients, 3 per sample.
  int64_t backward_scratch;      // Per worker.
};

struct DeformForward {
  DeformShape shape;
  DeformLayout layout;
  DeformType type;
  const float* image;          // Repacked x.
  const float* packed_kernel;
  const float* offset;
  const void* mask;            // Null: all ones.
  const void* bias;            // Null: zeros.
  void* output;
};

struct DeformBackward {
  DeformShape shape;
  DeformLayout layout;
  DeformType type;
  const float* image;
  const void* kernel;
  const float* offset;
  const void* mask;            // Null: all ones, and no gradient of it.
  const void* output_gradient;
  float* image_gradient;       // Laid out as image; zero on entry.
  float* kernel_gradient;      // kernel_gradient_size floats; zero on entry.
  float* sample_gradients;     // parts * sample_gradient_size floats; unused with one part.
  float* offset_gradient;
  void* mask_gradient;
};

struct DeformKernels {
  // Fills in the layout for a number of workers.
  void (*layout)(const DeformShape& shape, int64_t workers, DeformLayout* layout);
  // x to its repacked form, and the gradient of the repacked form to that of x; rows [begin, end) of image_rows.
  void (*pack_image)(const DeformShape& shape, const DeformLayout& layout, DeformType type, const void* x,
                     float* image, int64_t begin, int64_t end);
  void (*unpack_image)(const DeformShape& shape, const DeformLayout& layout, DeformType type, const float* image,
                       void* x, int64_t begin, int64_t end);
  // The kernel in panels for the matrix product, chunks [begin, end).
  void (*pack_kernel)(const DeformShape& shape, const DeformLayout& layout, DeformType type, const void* kernel,
                      float* packed, int64_t begin, int64_t end);
  // Output of tiles [begin, end) out of batch * tiles_per_image.
  void (*forward)(const DeformForward& task, float* scratch, int64_t begin, int64_t end);
  // Everything that units [begin, end) contribute to the gradients of x, kernel, offset and mask.
  void (*backward)(const DeformBackward& task, float* scratch, int64_t begin, int64_t end);
  // Sums the parts' offset and mask gradients of output pixels [begin, end); needed if there are several parts.
  void (*reduce_samples)(const DeformBackward& task, int64_t begin, int64_t end);
  // Sums the slices of the kernel gradient and brings it into the kernel's layout and type, taps [begin, end).
  void (*unpack_kernel)(const DeformBackward& task, void* kernel_gradient, int64_t begin, int64_t end);
  // sums[o] = sum of output_gradient[p, o] over pixels [begin, end).
  void (*sum_pixels)(const DeformBackward& task, int64_t begin, int64_t end, float* sums);
};

#if defined(__x86_64__)
namespace amx {
extern const DeformKernels kDeformKernels;  // Backward as with AVX-512.
}
namespace avx512bf16 {
extern const DeformKernels kDeformKernels;  // For bfloat16 only.
}
namespace avx512 {
extern const DeformKernels kDeformKernels;
}
namespace avx2 {
extern const DeformKernels kDeformKernels;
}
#endif
namespace generic {
extern const DeformKernels kDeformKernels;
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_KERNELS_DEFORM_CONV2D_H_
