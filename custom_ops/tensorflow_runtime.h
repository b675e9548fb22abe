// Memory and threads for the CPU's kernels from TensorFlow: the `Runtime` of deform_conv2d_cpu.h, match_patches_cpu.h.
#ifndef TFCORR_CUSTOM_OPS_TENSORFLOW_RUNTIME_H_
#define TFCORR_CUSTOM_OPS_TENSORFLOW_RUNTIME_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace tfcorr {

class TensorflowRuntime {
 public:
  // Own cache lines, and own pages, for every worker.
  static constexpr int64_t kScratchUnit = 1024;

  explicit TensorflowRuntime(tensorflow::OpKernelContext* context)
      : context_(context), pool_(*context->device()->tensorflow_cpu_worker_threads()) {}

  int64_t threads() const { return pool_.num_threads; }

  float* Floats(int64_t count) { return Values<float>(tensorflow::DT_FLOAT, count); }
  int32_t* Integers(int64_t count) { return Values<int32_t>(tensorflow::DT_INT32, count); }

  template <class Work>
  void ParallelFor(int64_t count, int64_t block, const Work& work) {
    using tensorflow::thread::ThreadPool;
    pool_.workers->ParallelFor(count, ThreadPool::SchedulingParams::Fixed(block), work);
  }

  // Why the last request for memory was not met.
  const absl::Status& status() const { return status_; }

 private:
  template <class T>
  T* Values(tensorflow::DataType type, int64_t count) {
    // Never empty, so that null means that there was no memory.
    memory_.emplace_back();
    status_ = context_->allocate_temp(type, tensorflow::TensorShape({count > 0 ? count : 1}), &memory_.back());
    return status_.ok() ? memory_.back().flat<T>().data() : nullptr;
  }

  tensorflow::OpKernelContext* const context_;
  const tensorflow::DeviceBase::CpuWorkerThreads& pool_;
  std::deque<tensorflow::Tensor> memory_;
  absl::Status status_;
};

// The sizes of a tensor's shape.
inline std::vector<int64_t> DimensionsOf(const tensorflow::TensorShape& shape) {
  const auto sizes = shape.dim_sizes();
  return {sizes.begin(), sizes.end()};
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_TENSORFLOW_RUNTIME_H_
