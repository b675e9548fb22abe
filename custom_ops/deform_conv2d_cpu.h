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
#include <atomic>
#include <cstdint>

#include "deform_conv2d_geometry.h"
#include "isa.h"
#include "kernels/deform_conv2d.h"

namespace tfcorr {

inline const DeformKernels& DeformKernelsFor(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
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
    float* const image = PackImage(inputs.x);
    float* const packed_kernel = runtime_.Floats(layout_.packed_kernel_size);
    if (image == nullptr || packed_kernel == nullptr) return false;
    runtime_.ParallelFor(layout_.chunks, 1, [&](int64_t begin, int64_t end) {
      kernels_.pack_kernel(shape_, layout_, type_, inputs.kernel, packed_kernel, begin, end);
    });
    const DeformForward task = {shape_, layout_,      type_,       image, packed_kernel, inputs.offset,
                                inputs.mask, inputs.bias, output};
    return WithScratch(shape_.batch * layout_.tiles_per_image, layout_.forward_scratch,
                       [&](float* scratch, int64_t tile) { kernels_.forward(task, scratch, tile, tile + 1); });
  }

  bool Backward(const DeformInputs& inputs, const void* output_gradient, const DeformGradients& gradients) {
    float* const image = PackImage(inputs.x);
    float* const image_gradient = Zeros(layout_.image_size);
    float* const kernel_gradient = Zeros(layout_.kernel_gradient_size);
    const int64_t parts = layout_.parts > 1 ? layout_.parts : 0;
    float* const samples = runtime_.Floats(parts * layout_.sample_gradient_size);
    if (image == nullptr || image_gradient == nullptr || kernel_gradient == nullptr || samples == nullptr) return false;
    const DeformBackward task = {shape_,       layout_,        type_,           image,           inputs.kernel,
                                 inputs.offset, inputs.mask,    output_gradient, image_gradient,  kernel_gradient,
                                 samples,       gradients.offset, gradients.mask};
    if (!WithScratch(layout_.units, layout_.backward_scratch,
                     [&](float* scratch, int64_t unit) { kernels_.backward(task, scratch, unit, unit + 1); })) {
      return false;
    }
    runtime_.ParallelFor(layout_.image_rows, 8, [&](int64_t begin, int64_t end) {
      kernels_.unpack_image(shape_, layout_, type_, image_gradient, gradients.x, begin, end);
    });
    runtime_.ParallelFor(shape_.kernel_height * shape_.kernel_width, 1, [&](int64_t begin, int64_t end) {
      kernels_.unpack_kernel(task, gradients.kernel, begin, end);
    });
    const int64_t pixels = shape_.batch * shape_.out_height * shape_.out_width;
    if (parts > 0) {
      runtime_.ParallelFor(pixels, 256,
                           [&](int64_t begin, int64_t end) { kernels_.reduce_samples(task, begin, end); });
    }
    return gradients.bias == nullptr || BiasGradient(task, pixels, gradients.bias);
  }

 private:
  // x, repacked with a border of zeros.
  float* PackImage(const void* x) {
    float* const image = runtime_.Floats(layout_.image_size);
    if (image != nullptr) {
      runtime_.ParallelFor(layout_.image_rows, 8, [&](int64_t begin, int64_t end) {
        kernels_.pack_image(shape_, layout_, type_, x, image, begin, end);
      });
    }
    return image;
  }

  float* Zeros(int64_t count) {
    float* const memory = runtime_.Floats(count);
    if (memory != nullptr) {
      runtime_.ParallelFor(count, int64_t{1} << 16, [memory](int64_t begin, int64_t end) {
        std::fill(memory + begin, memory + end, 0.0f);
      });
    }
    return memory;
  }

  // Runs work(scratch, i) for i in [0, count). Each worker has its own `size` floats of scratch and takes the next i
  // when it is done with one, so that no thread waits for a slower one.
  template <class Work>
  bool WithScratch(int64_t count, int64_t size, const Work& work) {
    const int64_t workers = std::min(runtime_.threads(), count);
    size = (size + Runtime::kScratchUnit - 1) / Runtime::kScratchUnit * Runtime::kScratchUnit;
    float* const memory = runtime_.Floats(workers * size);
    if (memory == nullptr) return false;
    std::atomic<int64_t> next{0};
    runtime_.ParallelFor(workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t i = next++; i < count; i = next++) work(memory + worker * size, i);
      }
    });
    return true;
  }

  // Sums in blocks of a fixed size, then the blocks in order: the same for any number of threads.
  bool BiasGradient(const DeformBackward& task, int64_t pixels, float* gradient) {
    constexpr int64_t kBlock = 1024;
    const int64_t outputs = shape_.out_channels;
    const int64_t blocks = (pixels + kBlock - 1) / kBlock;
    float* const sums = runtime_.Floats(blocks * outputs);
    if (sums == nullptr) return false;
    runtime_.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        kernels_.sum_pixels(task, block * kBlock, std::min(pixels, (block + 1) * kBlock), sums + block * outputs);
      }
    });
    for (int64_t o = 0; o < outputs; ++o) {
      gradient[o] = 0.0f;
      for (int64_t block = 0; block < blocks; ++block) gradient[o] += sums[block * outputs + o];
    }
    return true;
  }

  const DeformKernels& kernels_;
  const DeformShape shape_;
  const DeformType type_;
  Runtime& runtime_;
  DeformLayout layout_;
};

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_DEFORM_CONV2D_CPU_H_
