// The CPU's deformable convolution from end to end: memory, cutting into tasks, threads. What provides memory and
// threads is a `Runtime`, so that all of this runs without TensorFlow too (fuzz/fuzz_ops.cc):
//
//     int64_t threads() const;
//     float* Floats(int64_t count);   // Lives as long as the runtime; null where there is no memory.
//     template <class Work> void ParallelFor(int64_t count, int64_t block, const Work& work);
//         // Runs work(begin, end) on blocks that cover [0, count), concurrently, and waits for them.
//     static constexpr int64_t kScratchUnit;   // A worker's scratch memory is a multiple of these floats.
#ifndef TFCORR_CUSTOM_OPS_DEFORM_CONV2D_CPU_H_
#define TFCORR_CUSTOM_OPS_DEFORM_CONV2D_CPU_H_

#include <algorithm>
#include <cstdint>

#include "deform_conv2d_geometry.h"
#include "isa.h"
#include "kernels/deform_conv2d.h"
#include "steps.h"

namespace tfcorr {

inline const DeformKernels& DeformKernelsFor(Isa isa, DeformType type) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAmx:
      return amx::kDeformKernels;
    case Isa::kAvx512Bfloat16:
      return type == kDeformBfloat16 ? avx512bf16::kDeformKernels : avx512::kDeformKernels;
    case Isa::kAvx512:
      return avx512::kDeformKernels;
    case Isa::kAvx2:
      return avx2::kDeformKernels;
    case Isa::kGeneric:
      break;
  }
#endif
  return generic::kDeformKernels;
}

// The five inputs; mask and bias are null where there are none.
struct DeformInputs {
  const void* x;
  const void* kernel;
  const float* offset;
  const void* mask;
  const void* bias;
};

// Memory for the gradients, all of which are written; mask is not touched where there is none. The bias's is float32
// whatever the type, and null where there is none.
struct DeformGradients {
  void* x;
  void* kernel;
  float* offset;
  void* mask;
  float* bias;
};

template <class Runtime>
class DeformOnCpu {
 public:
  // For a shape that FitDeformShape has let through and that is not empty.
  DeformOnCpu(const DeformKernels& kernels, const DeformShape& shape, DeformType type, Runtime* runtime)
      : kernels_(kernels), shape_(shape), type_(type), runtime_(*runtime) {
    kernels_.layout(shape_, runtime_.threads(), &layout_);
  }

  // Both return false where there was no memory.
  bool Forward(const DeformInputs& inputs, void* output) {
    Steps steps;
    float* const image = PackImage(inputs.x, &steps);
    float* const packed_kernel = runtime_.Floats(layout_.packed_kernel_size);
    if (image == nullptr || packed_kernel == nullptr) return false;
    steps.AddBlocks(layout_.chunks, 1, [=](int64_t begin, int64_t end) {
      kernels_.pack_kernel(shape_, layout_, type_, inputs.kernel, packed_kernel, begin, end);
    });
    const DeformForward task = {shape_, layout_,      type_,       image, packed_kernel, inputs.offset,
                                inputs.mask, inputs.bias, output};
    steps.Add(shape_.batch * layout_.tiles_per_image,
              [&](float* scratch, int64_t tile) { kernels_.forward(task, scratch, tile, tile + 1); });
    return steps.Run(layout_.forward_scratch, &runtime_);
  }

  bool Backward(const DeformInputs& inputs, const void* output_gradient, const DeformGradients& gradients) {
    Steps steps;
    float* const image = PackImage(inputs.x, &steps);
    float* const image_gradient = Zeros(layout_.image_size, &steps);
    float* const kernel_gradient = Zeros(layout_.kernel_gradient_size, &steps);
    const int64_t parts = layout_.parts > 1 ? layout_.parts : 0;
    float* const samples = runtime_.Floats(parts * layout_.sample_gradient_size);
    if (image == nullptr || image_gradient == nullptr || kernel_gradient == nullptr || samples == nullptr) return false;
    const DeformBackward task = {shape_,       layout_,        type_,           image,           inputs.kernel,
                                 inputs.offset, inputs.mask,    output_gradient, image_gradient,  kernel_gradient,
                                 samples,       gradients.offset, gradients.mask};
    steps.Add(layout_.units, [&](float* scratch, int64_t unit) { kernels_.backward(task, scratch, unit, unit + 1); });
    steps.AddBlocks(layout_.image_rows, kRows, [&](int64_t begin, int64_t end) {
      kernels_.unpack_image(shape_, layout_, type_, image_gradient, gradients.x, begin, end);
    });
    steps.AddBlocks(shape_.kernel_height * shape_.kernel_width, 1, [&](int64_t begin, int64_t end) {
      kernels_.unpack_kernel(task, gradients.kernel, begin, end);
    });
    const int64_t pixels = shape_.batch * shape_.out_height * shape_.out_width;
    if (parts > 0) {
      steps.AddBlocks(pixels, 256,
                      [&](int64_t begin, int64_t end) { kernels_.reduce_samples(task, begin, end); });
    }
    // Blocks of a fixed size, then the blocks in order: the same for any number of threads.
    constexpr int64_t kBlock = 1024;
    const int64_t blocks = gradients.bias == nullptr ? 0 : (pixels + kBlock - 1) / kBlock;
    float* const sums = runtime_.Floats(blocks * shape_.out_channels);
    if (sums == nullptr) return false;
    steps.AddBlocks(blocks * kBlock, kBlock, [&](int64_t begin, int64_t end) {
      kernels_.sum_pixels(task, begin, std::min(pixels, end), sums + begin / kBlock * shape_.out_channels);
    });
    if (!steps.Run(layout_.backward_scratch, &runtime_)) return false;
    for (int64_t o = 0; gradients.bias != nullptr && o < shape_.out_channels; ++o) {
      gradients.bias[o] = 0.0f;
      for (int64_t block = 0; block < blocks; ++block) gradients.bias[o] += sums[block * shape_.out_channels + o];
    }
    return true;
  }

 private:
  static constexpr int64_t kRows = 8;  // Of an image, to be packed or unpacked together.

  // Memory for x, repacked with a border of zeros, and the step that fills it.
  float* PackImage(const void* x, Steps* steps) {
    float* const image = runtime_.Floats(layout_.image_size);
    steps->AddBlocks(layout_.image_rows, kRows, [=](int64_t begin, int64_t end) {
      kernels_.pack_image(shape_, layout_, type_, x, image, begin, end);
    });
    return image;
  }

  float* Zeros(int64_t count, Steps* steps) {
    float* const memory = runtime_.Floats(count);
    steps->AddBlocks(count, int64_t{1} << 16,
                     [memory](int64_t begin, int64_t end) { std::fill(memory + begin, memory + end, 0.0f); });
    return memory;
  }

  const DeformKernels& kernels_;
  const DeformShape shape_;
  const DeformType type_;
  Runtime& runtime_;
  DeformLayout layout_;
};

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_DEFORM_CONV2D_CPU_H_
