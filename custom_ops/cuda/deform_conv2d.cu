// Launches of the kernels in deform_conv2d.cuh.

#include "cuda/deform_conv2d.cuh"

#include <type_traits>

#include "cuda/deform_conv2d_gpu.h"
#include "cuda/launch.h"

namespace tfcorr {
namespace gpu {
namespace {

constexpr int kBlock = 256;  // Threads of the kernels that take one value each.
unsigned int Blocks(int64_t count) { return static_cast<unsigned int>(DivideUp(count, kBlock)); }

// Sizes that every launch needs.
struct Sizes {
  explicit Sizes(const DeformShape& s)
      : pixels(s.batch * s.out_height * s.out_width),
        wide(s.channels / s.groups),
        columns(s.groups * s.kernel_height * s.kernel_width * wide),
        kernel(columns * s.out_channels),
        image(s.batch * s.height * s.width * s.channels),
        pixel_tiles(DivideUp(pixels, kTile)),
        column_tiles(DivideUp(columns, kTile)),
        output_tiles(DivideUp(s.out_channels, kTile)),
        // About a thousand blocks: some on every multiprocessor, and partial sums of a size like the kernel's.
        kernel_slices(CutSlices(pixels, kDepth, smaller(32, DivideUp(1024, column_tiles * output_tiles)))),
        bias_slices(CutSlices(pixels, 8, 128)) {}

  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  int64_t pixels, wide, columns, kernel, image;
  int64_t pixel_tiles, column_tiles, output_tiles;
  Slices kernel_slices, bias_slices;
};

// Cuts the workspace into arrays that each begin at a multiple of 256 bytes; without memory it only measures.
class Cutter {
 public:
  explicit Cutter(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* Take(int64_t count) {
    T* const taken = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + size_);
    size_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), 256);
    return taken;
  }
  int64_t size() const { return size_; }

 private:
  char* const memory_;
  int64_t size_ = 0;
};

template <class T>
struct BackwardSpace {
  BackwardSpace(const DeformShape& s, const Sizes& sizes, void* memory) {
    Cutter cutter(memory);
    packed_kernel = cutter.Take<T>(sizes.kernel);
    kernel_gradients = cutter.Take<float>(sizes.kernel_slices.count * sizes.kernel);
    bias_gradients = cutter.Take<float>(sizes.bias_slices.count * s.out_channels);
    // A float32 gradient of x is added up in place.
    image_gradient = cutter.Take<float>(sizeof(T) == sizeof(float) ? 0 : sizes.image);
    size = cutter.size();
  }
  T* packed_kernel;
  float *kernel_gradients, *bias_gradients, *image_gradient;
  int64_t size;
};

template <class T>
void Pack(const DeformShape& shape, const Sizes& sizes, const T* kernel, T* packed, cudaStream_t stream) {
  Launch(PackKernel<T>, Blocks(sizes.kernel), kBlock, 0, stream, shape, sizes.columns, kernel, packed);
}

template <class T>
cudaError_t Forward(const DeformShape& shape, const T* x, const T* kernel, const float* offset, const T* mask,
                    const T* bias, T* output, T* packed, cudaStream_t stream) {
  const Sizes sizes(shape);
  Pack(shape, sizes, kernel, packed, stream);
  const Samples<T> from = {shape, x, offset, mask};
  const dim3 grid(static_cast<unsigned int>(sizes.pixel_tiles), static_cast<unsigned int>(sizes.output_tiles));
  const auto launch = [&](auto function) {
    Launch(function, grid, kThreads, 0, stream, from, static_cast<uint32_t>(sizes.pixels),
                                            static_cast<uint32_t>(sizes.columns), packed, bias, output);
  };
  // Channels that one thread gathers at once.
  if (sizes.wide % 8 == 0) {
    launch(ForwardKernel<T, 8>);
  } else if (sizes.wide % 4 == 0) {
    launch(ForwardKernel<T, 4>);
  } else {
    launch(ForwardKernel<T, 1>);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t Backward(const DeformShape& shape, const T* x, const T* kernel, const float* offset, const T* mask,
                     const T* output_gradient, T* x_gradient, T* kernel_gradient, float* offset_gradient,
                     T* mask_gradient, T* bias_gradient, void* workspace, cudaStream_t stream) {
  const Sizes sizes(shape);
  const BackwardSpace<T> space(shape, sizes, workspace);
  float* image_gradient = space.image_gradient;
  if constexpr (sizeof(T) == sizeof(float)) image_gradient = x_gradient;
  if (sizes.image > 0) {
    const cudaError_t error = cudaMemsetAsync(image_gradient, 0, sizes.image * sizeof(float), stream);
    if (error != cudaSuccess) return error;
  }
  Pack(shape, sizes, kernel, space.packed_kernel, stream);
  const Samples<T> from = {shape, x, offset, mask};
  const uint32_t pixels = static_cast<uint32_t>(sizes.pixels), columns = static_cast<uint32_t>(sizes.columns);

  const SampleTiles tiles = CutSampleTiles(shape, kTile);
  const int vector = sizes.wide % 4 == 0 ? 4 : 1;
  const int64_t channels = sizes.wide < kTile ? sizes.wide : kTile;
  int lanes = 1;
  while (lanes < 32 && 2 * lanes * vector <= channels) lanes *= 2;
  const dim3 sample_grid(static_cast<unsigned int>(sizes.pixel_tiles), static_cast<unsigned int>(tiles.count));
  const auto launch_samples = [&](auto function) {
    Launch(function, sample_grid, kThreads, 0, stream, from, pixels, tiles, lanes, space.packed_kernel, output_gradient,
                                                   image_gradient, offset_gradient, mask_gradient);
  };
  if (vector == 4) {
    launch_samples(SampleGradientKernel<T, 4>);
  } else {
    launch_samples(SampleGradientKernel<T, 1>);
  }
  if constexpr (sizeof(T) != sizeof(float)) {
    if (sizes.image > 0) {
      Launch(AddSlices<T>, Blocks(sizes.image), kBlock, 0, stream, sizes.image, 1, image_gradient, x_gradient);
    }
  }

  const dim3 kernel_grid(static_cast<unsigned int>(sizes.column_tiles), static_cast<unsigned int>(sizes.output_tiles),
                         static_cast<unsigned int>(sizes.kernel_slices.count));
  const auto launch_kernel = [&](auto function) {
    Launch(function, kernel_grid, kThreads, 0, stream, from, pixels, columns,
                                                   static_cast<uint32_t>(sizes.kernel_slices.size), output_gradient,
                                                   space.kernel_gradients);
  };
  if (sizes.wide % 8 == 0) {
    launch_kernel(KernelGradientKernel<T, 8>);
  } else if (sizes.wide % 4 == 0) {
    launch_kernel(KernelGradientKernel<T, 4>);
  } else {
    launch_kernel(KernelGradientKernel<T, 1>);
  }
  Launch(UnpackKernelGradient<T>, Blocks(sizes.kernel), kBlock, 0, stream, shape, sizes.columns, sizes.kernel_slices.count,
                                                                    space.kernel_gradients, kernel_gradient);

  if (bias_gradient != nullptr) {
    const int64_t outputs = shape.out_channels;
    const dim3 grid(static_cast<unsigned int>(DivideUp(outputs, 32)),
                    static_cast<unsigned int>(sizes.bias_slices.count));
    Launch(BiasGradientKernel<T>, grid, dim3(32, 8), 0, stream, sizes.pixels, outputs, sizes.bias_slices.size,
                                                         output_gradient, space.bias_gradients);
    Launch(AddSlices<T>, Blocks(outputs), kBlock, 0, stream, outputs, sizes.bias_slices.count, space.bias_gradients,
                                                      bias_gradient);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t DeformForwardWorkspace(const DeformShape& shape, DeformType type) {
  return RoundUp(Sizes(shape).kernel * (type == kDeformFloat ? 4 : 2), 256);
}

int64_t DeformBackwardWorkspace(const DeformShape& shape, DeformType type) {
  const Sizes sizes(shape);
  return type == kDeformFloat ? BackwardSpace<float>(shape, sizes, nullptr).size
                              : BackwardSpace<__nv_bfloat16>(shape, sizes, nullptr).size;
}

cudaError_t DeformForward(const DeformShape& shape, DeformType type, const void* x, const void* kernel,
                          const float* offset, const void* mask, const void* bias, void* output, void* workspace,
                          cudaStream_t stream) {
  if (!FitsGpu(shape)) return cudaErrorInvalidValue;
  const auto run = [&](auto* of_type) {
    using T = std::remove_pointer_t<decltype(of_type)>;
    return Forward<T>(shape, static_cast<const T*>(x), static_cast<const T*>(kernel), offset,
                      static_cast<const T*>(mask), static_cast<const T*>(bias), static_cast<T*>(output),
                      static_cast<T*>(workspace), stream);
  };
  return type == kDeformFloat ? run(static_cast<float*>(nullptr)) : run(static_cast<__nv_bfloat16*>(nullptr));
}

cudaError_t DeformBackward(const DeformShape& shape, DeformType type, const void* x, const void* kernel,
                           const float* offset, const void* mask, const void* output_gradient, void* x_gradient,
                           void* kernel_gradient, float* offset_gradient, void* mask_gradient, void* bias_gradient,
                           void* workspace, cudaStream_t stream) {
  if (!FitsGpu(shape)) return cudaErrorInvalidValue;
  const auto run = [&](auto* of_type) {
    using T = std::remove_pointer_t<decltype(of_type)>;
    return Backward<T>(shape, static_cast<const T*>(x), static_cast<const T*>(kernel), offset,
                       static_cast<const T*>(mask), static_cast<const T*>(output_gradient), static_cast<T*>(x_gradient),
                       static_cast<T*>(kernel_gradient), offset_gradient, static_cast<T*>(mask_gradient),
                       static_cast<T*>(bias_gradient), workspace, stream);
  };
  return type == kDeformFloat ? run(static_cast<float*>(nullptr)) : run(static_cast<__nv_bfloat16*>(nullptr));
}

}  // namespace gpu
}  // namespace tfcorr
