// Work in steps for a team of threads: the units of a step are independent of one another, and begin when all units of
// the steps before are done.
//
// The team is called together once, and units are taken one by one: a thread that wakes late, which takes as long as a
// whole step at times, finds less to do, and nobody waits for it.
#ifndef TFCORR_CUSTOM_OPS_STEPS_H_
#define TFCORR_CUSTOM_OPS_STEPS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <utility>

namespace tfcorr {

class Steps {
 public:
  // work(scratch, unit) for every unit of [0, units); `scratch` belongs to the thread.
  using Work = std::function<void(float* scratch, int64_t unit)>;

  void Add(int64_t units, Work work) { steps_.emplace_back(units, std::move(work)); }

  // The same in units of a range: work(begin, end) for blocks that cover [0, count).
  template <class BlockWork>
  void AddBlocks(int64_t count, int64_t block, const BlockWork& work) {
    Add((count + block - 1) / block, [count, block, work](float*, int64_t unit) {
      work(unit * block, std::min(count, (unit + 1) * block));
    });
  }

  // Runs all steps on the runtime's threads (see deform_conv2d_cpu.h) with at least `scratch` floats each. False where
  // there was no memory.
  template <class Runtime>
  bool Run(int64_t scratch, Runtime* runtime) {
    int64_t most = 1;
    for (const Step& step : steps_) most = std::max(most, step.units);
    const int64_t workers = std::min(runtime->threads(), most);
    const int64_t size = (scratch + Runtime::kScratchUnit - 1) / Runtime::kScratchUnit * Runtime::kScratchUnit;
    float* const memory = runtime->Floats(workers * size);
    if (memory == nullptr) return false;
    runtime->ParallelFor(workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (Step& step : steps_) step.Share(memory + worker * size);
      }
    });
    return true;
  }

 private:
  struct Step {
    Step(int64_t count, Work unit_work) : units(count), work(std::move(unit_work)) {}

    // Takes units until none is left, and then waits for those that others have taken.
    void Share(float* scratch) {
      for (int64_t unit = next++; unit < units; unit = next++) {
        work(scratch, unit);
        done.fetch_add(1, std::memory_order_release);
      }
      for (int waited = 0; done.load(std::memory_order_acquire) < units; ++waited) {
        if (waited >= kSpins) std::this_thread::yield();
      }
    }

    const int64_t units;
    const Work work;
    std::atomic<int64_t> next{0}, done{0};
  };
  static constexpr int kSpins = 1000;  // Some microseconds; the units of others are short.

  std::deque<Step> steps_;
};

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_STEPS_H_
