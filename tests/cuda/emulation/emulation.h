// CUDA on the host, as far as custom_ops/cuda/ needs it: the kernels' own code runs here, block after block, with a
// fiber for each thread. It shows that indices, barriers, shuffles and tails are right, at the speed of an interpreter;
// it says nothing of what only a GPU can show (races, memory ordering, alignment, speed).
//
// A fiber runs until it meets the others, in __syncthreads or a shuffle, and then the next one does. Asynchronous copies
// are made as late as the program allows, when they are waited for, so that a wait that is missing shows. Shared memory
// begins as NaN.
#ifndef TFCORR_TESTS_CUDA_EMULATION_EMULATION_H_
#define TFCORR_TESTS_CUDA_EMULATION_EMULATION_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define TFCORR_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulation::dynamic_shared)

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
  dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned int x, y, z;
};

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidValue"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;  // What a block may have on Hopper.
}

namespace emulation {

struct Copy {
  void* target;
  const void* source;
  size_t bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::deque<std::vector<Copy>> groups;  // Asynchronous copies that were committed.
  std::vector<Copy> open;                // ... and those that were not.
};

constexpr size_t kStack = 256 * 1024;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline size_t current;
inline const std::function<void()>* body;
inline void* dynamic_shared;
inline std::vector<float> exchange;  // One value of every thread, for shuffles.

inline void Meet() { swapcontext(&fibers[current].context, &scheduler); }

inline void Run() {
  (*body)();
  fibers[current].done = true;
  Meet();
}

}  // namespace emulation

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline void RunBlock(dim3 block, const std::function<void()>& kernel) {
  const size_t count = block.x * block.y * block.z;
  body = &kernel;
  blockDim = block;
  exchange.assign(count, NAN);
  if (fibers.size() < count) fibers.resize(count);
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    fiber.groups.clear();
    fiber.open.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, Run, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (size_t i = 0; i < count; ++i) {
      if (fibers[i].done) continue;
      running = true;
      current = i;
      threadIdx = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
      swapcontext(&scheduler, &fibers[i].context);
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::Meet(); }

inline float __shfl_xor_sync(unsigned int, float value, int distance) {
  const size_t self = emulation::current;
  emulation::exchange[self] = value;
  emulation::Meet();
  const float other = emulation::exchange[self ^ static_cast<size_t>(distance)];
  emulation::Meet();
  return other;
}

template <class T>
inline T __ldg(const T* source) {
  if (reinterpret_cast<uintptr_t>(source) % alignof(T) != 0) {
    fprintf(stderr, "emulation: a vector of %zu bytes at %p\n", sizeof(T), static_cast<const void*>(source));
    abort();
  }
  return *source;
}
inline float __uint_as_float(unsigned int bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float atomicAdd(float* target, float value) {
  const float before = *target;
  *target += value;
  return before;
}
inline unsigned long long atomicMax(unsigned long long* target, unsigned long long value) {
  const unsigned long long before = *target;
  if (value > before) *target = value;
  return before;
}

inline void __pipeline_memcpy_async(void* target, const void* source, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(target) % bytes != 0 || reinterpret_cast<uintptr_t>(source) % bytes != 0) {
    fprintf(stderr, "emulation: an asynchronous copy that is not aligned\n");
    abort();
  }
  emulation::fibers[emulation::current].open.push_back({target, source, bytes});
}
inline void __pipeline_commit() {
  emulation::Fiber& fiber = emulation::fibers[emulation::current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
inline void __pipeline_wait_prior(size_t most) {
  emulation::Fiber& fiber = emulation::fibers[emulation::current];
  for (; fiber.groups.size() > most; fiber.groups.pop_front()) {
    for (const emulation::Copy& copy : fiber.groups.front()) memcpy(copy.target, copy.source, copy.bytes);
  }
}

namespace tfcorr {
namespace gpu {

template <class... Parameters, class... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            const Arguments&... arguments) {
  gridDim = grid;
  for (unsigned int z = 0; z < grid.z; ++z) {
    for (unsigned int y = 0; y < grid.y; ++y) {
      for (unsigned int x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        const std::unique_ptr<float4[]> shared(new float4[shared_bytes / sizeof(float4) + 1]);
        memset(static_cast<void*>(shared.get()), 0xff, shared_bytes);
        emulation::dynamic_shared = shared.get();
        emulation::RunBlock(block, [&] { kernel(static_cast<Parameters>(arguments)...); });
      }
    }
  }
}

}  // namespace gpu
}  // namespace tfcorr

#endif  // TFCORR_TESTS_CUDA_EMULATION_EMULATION_H_
