// The GPU's kernels of modulated deformable convolution; see ../kernels/deform_conv2d.h for the layouts.
//
// Every kernel is a matrix product of 64 x 64 tiles one side of which is gathered where it is used, so that the im2col
// matrix never exists:
//
//     forward    output (pixels, O) = columns (pixels, K) kernel (K, O)
//     backward   column gradient (pixels, K) = output gradient (pixels, O) kernel^T, of which a block at once makes the
//                gradients of offset, mask and x; kernel gradient (K, O) = columns^T output gradient, in slices of
//                pixels that are then added in order
//
// Sums are float32. With bfloat16 the gathered columns are rounded to bfloat16 for the tensor cores, as on a CPU with
// AVX512-BF16 (its other kernels keep them in float32). The gradient of x is added up by atomic additions, in an order
// that changes from run to run; all else is the same in every run.
#ifndef TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_CUH_
#define TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_CUH_

#include "cuda/index.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace tfcorr {
namespace gpu {

// Count neighbouring values as floats. Count of 4 or 8: an aligned address.
template <int kCount>
__device__ __forceinline__ void LoadFloats(const float* source, float* values) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(source + i));
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = __ldg(source + i);
  }
}

template <int kCount>
__device__ __forceinline__ void LoadFloats(const __nv_bfloat16* source, float* values) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 four = __ldg(reinterpret_cast<const uint2*>(source + i));
      values[i] = __uint_as_float(four.x << 16);
      values[i + 1] = __uint_as_float(four.x & 0xffff0000u);
      values[i + 2] = __uint_as_float(four.y << 16);
      values[i + 3] = __uint_as_float(four.y & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = ToFloat(source[i]);
  }
}

// Four neighbouring values of either type, both addresses aligned to them.
__device__ __forceinline__ void CopyFour(float* target, const float* source) {
  *reinterpret_cast<float4*>(target) = __ldg(reinterpret_cast<const float4*>(source));
}
__device__ __forceinline__ void CopyFour(__nv_bfloat16* target, const __nv_bfloat16* source) {
  *reinterpret_cast<uint2*>(target) = __ldg(reinterpret_cast<const uint2*>(source));
}
template <class T>
__device__ __forceinline__ T Zero() {
  T zero;
  Put(&zero, 0.0f);
  return zero;
}

// What a sample is taken from.
template <class T>
struct Samples {
  DeformShape shape;
  const T* x;
  const float* offset;
  const T* mask;  // Null: all ones.

  __device__ __forceinline__ int64_t Number(uint32_t pixel, int32_t group, int32_t tap) const {
    const int64_t taps = shape.kernel_height * shape.kernel_width;
    return (pixel * shape.groups + group) * taps + tap;
  }
  __device__ __forceinline__ Cell CellOf(const Pixel& place, int32_t tap, int64_t number) const {
    const float2 shift = __ldg(reinterpret_cast<const float2*>(offset) + number);
    return CellAt(shape, place.y, place.x, tap, shift.x, shift.y);
  }
  __device__ __forceinline__ float MaskOf(int64_t number) const {
    return mask == nullptr ? 1.0f : ToFloat(mask[number]);
  }
};

// V neighbouring columns of one pixel.
template <int V, class T>
__device__ __forceinline__ void GatherColumns(const Samples<T>& from, uint32_t pixel, const Pixel& place,
                                              uint32_t column, float* values) {
  const DeformShape& s = from.shape;
  const uint32_t wide = static_cast<uint32_t>(s.channels / s.groups);
  const Column at = ColumnAt(static_cast<uint32_t>(s.kernel_height * s.kernel_width), wide, column);
  const int64_t number = from.Number(pixel, at.group, at.tap);
  const Cell cell = from.CellOf(place, at.tap, number);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = 0.0f;
  if (!cell.inside) return;
  const float mask = from.MaskOf(number);
  const T* channels = from.x + at.group * static_cast<int64_t>(wide) + at.channel;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (!CornerIsInside(s, cell, corner)) continue;
    const float weight = mask * CornerWeight(cell, corner);
    float read[V];
    LoadFloats<V>(channels + CornerAt(s, cell, place.b, corner), read);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = fmaf(weight, read[i], values[i]);
  }
}

// Rows [first, first + kDepth) of a row-major (rows, width) matrix, its columns [begin, begin + kTile), as a tile; zeros
// where the matrix ends.
template <class T>
__device__ __forceinline__ void LoadTile(const T* matrix, int64_t rows, int64_t width, int64_t first, int64_t begin,
                                         T* tile) {
  if (width % 4 == 0) {
    for (int task = threadIdx.x; task < kDepth * kTile / 4; task += kThreads) {
      const int k = task / (kTile / 4), n = task % (kTile / 4) * 4;
      T* const target = tile + k * kStride + n;
      if (first + k < rows && begin + n < width) {
        CopyFour(target, matrix + (first + k) * width + begin + n);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) target[i] = Zero<T>();
      }
    }
  } else {
    for (int task = threadIdx.x; task < kDepth * kTile; task += kThreads) {
      const int k = task / kTile, n = task % kTile;
      const bool there = first + k < rows && begin + n < width;
      tile[k * kStride + n] = there ? matrix[(first + k) * width + begin + n] : Zero<T>();
    }
  }
}

// The same of the transposed matrix: its rows [begin, begin + kTile), of which `rows` are there, become the columns of
// the tile; its columns [first, first + kDepth) the rows.
template <class T>
__device__ __forceinline__ void LoadTransposedTile(const T* matrix, int64_t rows, int64_t width, int64_t first,
                                                   int64_t begin, T* tile) {
  if (width % 4 == 0) {
    for (int task = threadIdx.x; task < kDepth * kTile / 4; task += kThreads) {
      const int n = task % kTile, k = task / kTile * 4;
      float values[4] = {};
      if (begin + n < rows && first + k < width) LoadFloats<4>(matrix + (begin + n) * width + first + k, values);
#pragma unroll
      for (int i = 0; i < 4; ++i) Put(tile + (k + i) * kStride + n, values[i]);
    }
  } else {
    for (int task = threadIdx.x; task < kDepth * kTile; task += kThreads) {
      const int n = task % kTile, k = task / kTile;
      const bool there = begin + n < rows && first + k < width;
      tile[k * kStride + n] = there ? matrix[(begin + n) * width + first + k] : Zero<T>();
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------

// The kernel (kh, kw, C, O) with its rows in the columns' order: (K, O).
template <class T>
__global__ void PackKernel(DeformShape s, int64_t columns, const T* kernel, T* packed) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * s.out_channels) return;
  const Column column =
      ColumnAt(static_cast<uint32_t>(s.kernel_height * s.kernel_width), static_cast<uint32_t>(s.channels / s.groups),
               static_cast<uint32_t>(i / s.out_channels));
  packed[i] = kernel[KernelRow(s, column) * s.out_channels + i % s.out_channels];
}

// Grid: tiles of pixels, tiles of outputs.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(Samples<T> from, uint32_t pixels, uint32_t columns, const T* packed_kernel, const T* bias, T* output) {
  __shared__ Shared<T> shared;
  __shared__ Pixel places[kTile];
  const uint32_t first_pixel = blockIdx.x * kTile;
  const int64_t first_output = static_cast<int64_t>(blockIdx.y) * kTile, outputs = from.shape.out_channels;
  if (threadIdx.x < kTile && first_pixel + threadIdx.x < pixels) {
    places[threadIdx.x] = PixelAt(from.shape, first_pixel + threadIdx.x);
  }
  __syncthreads();

  Product<T> product;
  product.Clear();
  MultiplySteps<T>(static_cast<int>(DivideUp(columns, kDepth)), &shared, &product, [&](int step, T* a, T* b) {
    const uint32_t first_column = step * kDepth;
    // Neighbouring threads take neighbouring pixels, so that they store to neighbouring places.
    for (int task = threadIdx.x; task < kTile * kDepth / V; task += kThreads) {
      const int m = task % kTile, k = task / kTile * V;
      float values[V] = {};
      if (first_pixel + m < pixels && first_column + k < columns) {
        GatherColumns<V>(from, first_pixel + m, places[m], first_column + k, values);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) Put(a + (k + i) * kStride + m, values[i]);
    }
    LoadTile(packed_kernel, columns, outputs, first_column, first_output, b);
  });
  product.Store(shared.sums);
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int m = i / kTile;
    const int64_t o = first_output + i % kTile;
    if (first_pixel + m >= pixels || o >= outputs) continue;
    const float sum = shared.sums[m * kSumStride + i % kTile];
    Put(output + (first_pixel + m) * outputs + o, bias == nullptr ? sum : sum + ToFloat(bias[o]));
  }
}

// x_gradient += four values, each atomically.
__device__ __forceinline__ void AddFour(float* target, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(target), make_float4(a, b, c, d));
#else
  atomicAdd(target, a);
  atomicAdd(target + 1, b);
  atomicAdd(target + 2, c);
  atomicAdd(target + 3, d);
#endif
}

// The gradients of offset and mask, and that of x added to x_gradient. Grid: tiles of pixels, tiles of samples. V is 4
// or 1 channels that a lane takes at once, kLanes the lanes that share a sample.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    SampleGradientKernel(Samples<T> from, uint32_t pixels, SampleTiles tiles, int lanes, const T* packed_kernel,
                         const T* output_gradient, float* x_gradient, float* offset_gradient, T* mask_gradient) {
  __shared__ Shared<T> shared;
  __shared__ Pixel places[kTile];
  __shared__ float4 dots[kTile];  // Of the parts so far, where a sample has several.
  const DeformShape& s = from.shape;
  const int32_t taps = static_cast<int32_t>(s.kernel_height * s.kernel_width);
  const int32_t wide = static_cast<int32_t>(s.channels / s.groups);
  const uint32_t first_pixel = blockIdx.x * kTile;
  const int32_t first_sample = blockIdx.y * tiles.samples;
  const int32_t left = static_cast<int32_t>(s.groups) * taps - first_sample;
  const int32_t samples = left < tiles.samples ? left : tiles.samples;
  if (threadIdx.x < kTile) {
    if (first_pixel + threadIdx.x < pixels) places[threadIdx.x] = PixelAt(s, first_pixel + threadIdx.x);
    dots[threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __syncthreads();

  for (int part = 0; part < tiles.parts; ++part) {
    const int32_t first_channel = part * kTile;
    const int32_t channels = wide - first_channel < kTile ? wide - first_channel : kTile;
    const int64_t first_column = static_cast<int64_t>(first_sample) * wide + first_channel;
    Product<T> product;
    product.Clear();
    MultiplySteps<T>(static_cast<int>(DivideUp(s.out_channels, kDepth)), &shared, &product,
                     [&](int step, T* a, T* b) {
                       const int64_t first_output = static_cast<int64_t>(step) * kDepth;
                       LoadTransposedTile(output_gradient, pixels, s.out_channels, first_output, first_pixel, a);
                       LoadTransposedTile(packed_kernel, first_column + samples * channels, s.out_channels,
                                          first_output, first_column, b);
                     });
    product.Store(shared.sums);
    __syncthreads();

    // Every lane makes the same steps, so that whole warps meet in the shuffles.
    const int lane = threadIdx.x % lanes, teams = kThreads / lanes;
    for (int first = 0; first < kTile * samples; first += teams) {
      const int task = first + threadIdx.x / lanes;
      const int m = task / samples, local = task % samples;
      const bool there = task < kTile * samples && first_pixel + m < pixels;
      float dot[4] = {};
      Cell cell = {};
      float mask = 0.0f;
      int64_t number = 0;
      if (there) {
        const int32_t group = (first_sample + local) / taps, tap = (first_sample + local) % taps;
        number = from.Number(first_pixel + m, group, tap);
        cell = from.CellOf(places[m], tap, number);
        if (cell.inside) mask = from.MaskOf(number);
        const int64_t base = group * static_cast<int64_t>(wide) + first_channel;
        const float* gradients = shared.sums + m * kSumStride + local * wide;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (!CornerIsInside(s, cell, corner)) continue;
          const float weight = mask * CornerWeight(cell, corner);
          const int64_t at = CornerAt(s, cell, places[m].b, corner) + base;
          for (int c = lane * V; c < channels; c += lanes * V) {
            float read[V], gradient[V];
            LoadFloats<V>(from.x + at + c, read);
#pragma unroll
            for (int i = 0; i < V; ++i) {
              gradient[i] = gradients[c + i];
              dot[corner] = fmaf(gradient[i], read[i], dot[corner]);
            }
            if (weight == 0.0f) continue;
            if constexpr (V == 4) {
              AddFour(x_gradient + at + c, weight * gradient[0], weight * gradient[1], weight * gradient[2],
                      weight * gradient[3]);
            } else {
              atomicAdd(x_gradient + at + c, weight * gradient[0]);
            }
          }
        }
      }
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) dot[i] += __shfl_xor_sync(0xffffffffu, dot[i], distance);
      }
      if (!there || lane != 0) continue;
      if (tiles.parts > 1) {  // One sample in the tile: the task is the pixel, and always this thread's.
        const float4 before = dots[m];
        dot[0] += before.x;
        dot[1] += before.y;
        dot[2] += before.z;
        dot[3] += before.w;
        dots[m] = make_float4(dot[0], dot[1], dot[2], dot[3]);
        if (part + 1 < tiles.parts) continue;
      }
      // With v(y, x) the bilinear sample, dv/dy = (1 - lx)(v2 - v0) + lx (v3 - v1); dv/dx alike.
      float dy = 0.0f, dx = 0.0f, value = 0.0f;
      if (cell.inside) {
        const float left_slope = dot[2] - dot[0], right_slope = dot[3] - dot[1];
        const float top = dot[1] - dot[0], bottom = dot[3] - dot[2];
        dy = mask * fmaf(cell.lx, right_slope - left_slope, left_slope);
        dx = mask * fmaf(cell.ly, bottom - top, top);
        const float upper = fmaf(cell.lx, top, dot[0]), lower = fmaf(cell.lx, bottom, dot[2]);
        value = fmaf(cell.ly, lower - upper, upper);
      }
      reinterpret_cast<float2*>(offset_gradient)[number] = make_float2(dy, dx);
      if (from.mask != nullptr) Put(mask_gradient + number, value);
    }
    __syncthreads();
  }
}

// partial (slices, K, O): the kernel's gradient from each slice of pixels. Grid: tiles of columns, of outputs, slices.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    KernelGradientKernel(Samples<T> from, uint32_t pixels, uint32_t columns, uint32_t slice_pixels,
                         const T* output_gradient, float* partial) {
  __shared__ Shared<T> shared;
  const uint32_t first_column = blockIdx.x * kTile;
  const int64_t first_output = static_cast<int64_t>(blockIdx.y) * kTile, outputs = from.shape.out_channels;
  const uint32_t begin = blockIdx.z * slice_pixels;
  const uint32_t end = pixels - begin < slice_pixels ? pixels : begin + slice_pixels;
  Product<T> product;
  product.Clear();
  MultiplySteps<T>(static_cast<int>(DivideUp(end - begin, kDepth)), &shared, &product, [&](int step, T* a, T* b) {
    const uint32_t first_pixel = begin + step * kDepth;
    for (int task = threadIdx.x; task < kTile * kDepth / V; task += kThreads) {
      const int k = task / (kTile / V), m = task % (kTile / V) * V;
      float values[V] = {};
      if (first_pixel + k < end && first_column + m < columns) {
        GatherColumns<V>(from, first_pixel + k, PixelAt(from.shape, first_pixel + k), first_column + m, values);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) Put(a + k * kStride + m + i, values[i]);
    }
    LoadTile(output_gradient, end, outputs, first_pixel, first_output, b);
  });
  product.Store(shared.sums);
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const uint32_t column = first_column + i / kTile;
    const int64_t o = first_output + i % kTile;
    if (column >= columns || o >= outputs) continue;
    partial[(static_cast<int64_t>(blockIdx.z) * columns + column) * outputs + o] =
        shared.sums[i / kTile * kSumStride + i % kTile];
  }
}

// The slices' sum, in the kernel's own order.
template <class T>
__global__ void UnpackKernelGradient(DeformShape s, int64_t columns, int64_t slices, const float* partial,
                                     T* kernel_gradient) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t size = columns * s.out_channels;
  if (i >= size) return;
  float sum = 0.0f;
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  const Column column =
      ColumnAt(static_cast<uint32_t>(s.kernel_height * s.kernel_width), static_cast<uint32_t>(s.channels / s.groups),
               static_cast<uint32_t>(i / s.out_channels));
  Put(kernel_gradient + KernelRow(s, column) * s.out_channels + i % s.out_channels, sum);
}

// partial (slices, O): sums of the output's gradient. Blocks of 32 x 8 threads; grid: tiles of 32 outputs, slices.
template <class T>
__global__ void BiasGradientKernel(int64_t pixels, int64_t outputs, int64_t slice_pixels, const T* output_gradient,
                                   float* partial) {
  __shared__ float sums[8][32];
  const int64_t o = blockIdx.x * 32 + threadIdx.x;
  const int64_t begin = blockIdx.y * slice_pixels;
  const int64_t end = pixels - begin < slice_pixels ? pixels : begin + slice_pixels;
  float sum = 0.0f;
  if (o < outputs) {
    for (int64_t p = begin + threadIdx.y; p < end; p += 8) sum += ToFloat(output_gradient[p * outputs + o]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || o >= outputs) return;
  for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x];
  partial[blockIdx.y * outputs + o] = sum;
}

template <class T>
__global__ void AddSlices(int64_t size, int64_t slices, const float* partial, T* target) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
  Put(target + i, sum);
}

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_CUDA_DEFORM_CONV2D_CUH_
