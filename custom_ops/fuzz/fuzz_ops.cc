// Random and hostile cases for the CPU's kernels, without TensorFlow in the process: made to run under the sanitizers.
//
//     fuzz_ops [--cases N] [--first F] [--seed S] [--threads T] [--kind deform|match|sizes]
//
// Case number n of a seed is always the same, so `--first n --cases 1` repeats it. Every case draws shapes (zero sizes
// among them), attributes, and values with NaN, infinities and huge offsets among them, gives each array exactly its
// size on the heap, runs every instruction set that the processor has in turn, and compares with a plain loop in
// float64. `sizes` feeds the checks of shapes with absurd numbers and asks for the layout of what they let through.
// With T > 1 the work is really spread over threads, and every task is called from two threads at once.
//
// Exit status 0: all cases passed. The first that does not is named, and the process aborts.

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "deform_conv2d_cpu.h"
#include "deform_conv2d_geometry.h"
#include "isa.h"
#include "match_patches_cpu.h"
#include "match_patches_geometry.h"

#if defined(__SANITIZE_ADDRESS__)
// Freed memory is used again soon: fresh pages for every case would take most of the time.
extern "C" const char* __asan_default_options() { return "quarantine_size_mb=8:max_allocation_size_mb=4096"; }
#endif

namespace {

using tfcorr::DeformAttributes;
using tfcorr::DeformShape;
using tfcorr::Dimensions;
using tfcorr::Isa;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int64_t current_case = -1;
std::string current_story;  // What the case has drawn, for the report.

[[noreturn]] void Fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "fuzz_ops: case %lld: ", static_cast<long long>(current_case));
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n  %s\n", current_story.c_str());
  va_end(arguments);
  std::abort();
}

// SplitMix64: one state word, so that every case can have a generator of its own.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int64_t Below(int64_t bound) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(bound)); }
  int64_t Between(int64_t low, int64_t high) { return low + Below(high - low + 1); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  float Unit() { return static_cast<float>(Bits() >> 40) * 0x1p-24f; }
  float Normal() {  // Near enough: variance 1, within [-3.5, 3.5].
    return (Unit() + Unit() + Unit() + Unit() - 2.0f) * 1.7320508f;
  }
  template <class T>
  T Of(std::initializer_list<T> choices) {
    return choices.begin()[Below(static_cast<int64_t>(choices.size()))];
  }

 private:
  uint64_t state_;
};

// Memory of exactly so many values, filled with NaN. Its end is the end of the allocation; its begin is aligned only to
// the type if `misaligned`, as a slice of a tensor may be.
template <class T>
class Exactly {
 public:
  explicit Exactly(int64_t count, bool misaligned = false) : count_(count) {
    const size_t lead = misaligned ? sizeof(T) : 0;
    const size_t bytes = lead + static_cast<size_t>(count) * sizeof(T);
    if (posix_memalign(&memory_, 64, std::max<size_t>(bytes, 1)) != 0) Fail("no memory for %zu bytes", bytes);
    std::memset(memory_, 0xff, bytes);
    data_ = reinterpret_cast<T*>(static_cast<char*>(memory_) + lead);
  }
  ~Exactly() { std::free(memory_); }
  Exactly(const Exactly&) = delete;
  Exactly& operator=(const Exactly&) = delete;
  T* data() { return data_; }
  int64_t count() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t count_;
  void* memory_;
  T* data_;
};

// The runtime of deform_conv2d_cpu.h. `workers` is what the work is cut for; it runs concurrently only if asked to.
class StandaloneRuntime {
 public:
  static constexpr int64_t kScratchUnit = 16;  // No more than alignment, so that overruns leave the allocation.

  StandaloneRuntime(int64_t workers, bool concurrent) : workers_(workers), concurrent_(concurrent) {}
  int64_t threads() const { return workers_; }
  float* Floats(int64_t count) { return Values<float>(count); }
  int32_t* Integers(int64_t count) { return Values<int32_t>(count); }

  template <class Work>
  void ParallelFor(int64_t count, int64_t block, const Work& work) {
    if (!concurrent_) {
      for (int64_t begin = 0; begin < count; begin += block) work(begin, std::min(count, begin + block));
      return;
    }
    std::atomic<int64_t> next{0};
    const auto run = [&] {
      for (int64_t begin = next.fetch_add(block); begin < count; begin = next.fetch_add(block)) {
        work(begin, std::min(count, begin + block));
      }
    };
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < workers_; ++i) threads.emplace_back(run);
    run();
    for (std::thread& thread : threads) thread.join();
  }

 private:
  template <class T>
  T* Values(int64_t count) {
    if (count < 0) Fail("asked for %lld values", static_cast<long long>(count));
    auto memory = std::make_shared<Exactly<T>>(count);
    memory_.push_back(memory);
    return memory->data();
  }

  const int64_t workers_;
  const bool concurrent_;
  std::vector<std::shared_ptr<void>> memory_;
};

std::vector<Isa> Available() {
  std::vector<Isa> found = {Isa::kGeneric};
  const Isa best = tfcorr::SelectIsa();
  if (best != Isa::kGeneric) found.push_back(Isa::kAvx2);
  if (best >= Isa::kAvx512) found.push_back(Isa::kAvx512);
  if (best >= Isa::kAvx512Bfloat16 && tfcorr::HasAvx512Bfloat16()) found.push_back(Isa::kAvx512Bfloat16);
  if (best == Isa::kAmx) found.push_back(Isa::kAmx);  // With TFCORR_AMX=1.
  return found;
}

// Runs a task, or, when threads are asked for, the same task with a runtime and results of its own on two threads.
void OnCallers(bool concurrent, const std::function<void(int)>& task) {
  if (!concurrent) {
    task(0);
    return;
  }
  std::thread other([&] { task(1); });
  task(0);
  other.join();
}

// ---------------------------------------------------------------------------------------------------------------
// bfloat16 and its rounding, written a second time.

float Widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t Narrow(float value) {
  if (std::isnan(value)) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rest = bits & 0xffff;
  bits >>= 16;
  if (rest > 0x8000 || (rest == 0x8000 && (bits & 1))) ++bits;
  return static_cast<uint16_t>(bits);
}

// An array of the case's type with its values in float32 beside it.
struct Values {
  Values(int64_t count, bool bfloat16, bool misaligned) : floats(count), wide(bfloat16 ? 0 : count, misaligned),
                                                          narrow(bfloat16 ? count : 0, misaligned),
                                                          is_bfloat16(bfloat16) {}
  void Set(int64_t i, float value) {
    if (is_bfloat16) {
      narrow[i] = Narrow(value);
      floats[i] = Widen(narrow[i]);
    } else {
      wide[i] = floats[i] = value;
    }
  }
  // What a kernel has written.
  float Read(int64_t i) const { return is_bfloat16 ? Widen(narrow[i]) : wide[i]; }
  void* data() { return is_bfloat16 ? static_cast<void*>(narrow.data()) : wide.data(); }
  int64_t count() const { return floats.count(); }

  Exactly<float> floats;
  Exactly<float> wide;
  Exactly<uint16_t> narrow;
  const bool is_bfloat16;
};

// ---------------------------------------------------------------------------------------------------------------
// Deformable convolution.

// A sum in float64, and the sum of its terms' sizes, which rounding errors are measured by.
struct Sum {
  double value = 0, size = 0;
  void Add(double term) {
    value += term;
    size += std::fabs(term);
  }
};

// `terms`: the error of each term over its size; products on tiles are less exact.
void Compare(const char* what, int64_t i, float have, const Sum& want, bool bfloat16, double terms = 3e-6) {
  const double tolerance = terms * want.size + (bfloat16 ? 0.005 * std::fabs(want.value) : 0.0) + 1e-30;
  if (!(std::fabs(have - want.value) <= tolerance)) {
    Fail("%s[%lld] is %.9g, expected %.9g within %.3g", what, static_cast<long long>(i), have, want.value, tolerance);
  }
}

struct DeformCase {
  DeformAttributes attributes;
  DeformShape shape;
  Dimensions x, kernel, offset, mask, bias;
  bool bfloat16, hostile;
  int64_t workers;
};

// Positions as the op defines them, in float32.
struct Sample {
  bool inside;
  int64_t y0, x0;
  double ly, lx;
};

Sample SampleAt(const DeformShape& s, int64_t oy, int64_t ox, int64_t ky, int64_t kx, float dy, float dx) {
  const float y = (static_cast<float>(oy * s.stride_y - s.pad_top) + static_cast<float>(ky * s.dilation_y)) + dy;
  const float x = (static_cast<float>(ox * s.stride_x - s.pad_left) + static_cast<float>(kx * s.dilation_x)) + dx;
  Sample sample = {};
  sample.inside = y > -1 && y < static_cast<float>(s.height) && x > -1 && x < static_cast<float>(s.width);
  if (sample.inside) {
    sample.y0 = static_cast<int64_t>(std::floor(y));
    sample.x0 = static_cast<int64_t>(std::floor(x));
    sample.ly = static_cast<double>(y) - static_cast<double>(sample.y0);
    sample.lx = static_cast<double>(x) - static_cast<double>(sample.x0);
  }
  return sample;
}

float HostileOffset(Random& random, const DeformShape& s) {
  switch (random.Below(12)) {
    case 0:
      return kNan;
    case 1:
      return kInfinity;
    case 2:
      return -kInfinity;
    case 3:
      return std::numeric_limits<float>::max();
    case 4:
      return -3e38f;
    case 5:
      return 2147483648.0f;  // One past the largest int32.
    case 6:
      return -2147483904.0f;
    case 7:
      return 1e-41f;  // No normal number.
    case 8:
      return -static_cast<float>(random.Between(0, 8));  // Whole numbers: exactly on -1, 0, H - 1, H.
    case 9:
      return static_cast<float>(random.Between(0, s.height + 2));
    case 10:
      return std::nextafter(-1.0f, 0.0f);
    default:
      return random.Normal() * 1e6f;
  }
}

DeformCase DrawDeform(Random& random) {
  DeformCase c;
  DeformAttributes& a = c.attributes;
  a.strides = {random.Of({1, 1, 1, 2, 3}), random.Of({1, 1, 1, 2, 3})};
  a.dilations = {random.Of({1, 1, 1, 2, 4}), random.Of({1, 1, 1, 2, 3})};
  a.padding = random.Of({"SAME", "SAME", "VALID", "EXPLICIT"});
  if (a.padding == "EXPLICIT") {
    for (int i = 0; i < 4; ++i) a.explicit_padding.push_back(random.Of({0, 1, 1, 2, 5, 9}));
  }
  a.groups = random.Of({1, 1, 2, 3, 4, 8});
  a.free_grid = random.OneIn(3);
  a.has_mask = !random.OneIn(4);
  a.has_bias = !random.OneIn(4);
  const int64_t limit = random.OneIn(500) ? 3000000 : 12000;
  for (;;) {
    const auto side = [&] { return random.Of<int64_t>({0, 1, 1, 2, 3, 4, 5, 7, 8, 13, 31, 64, 250}); };
    const int64_t batch = random.Of({0, 1, 1, 1, 1, 1, 2, 3});
    const int64_t channels =
        a.groups * random.Of({1, 1, 2, 3, 4, 5, 7, 8, 8, 9, 12, 16, 17, 24, 32, 33, 40, 64, 100});
    const int64_t outputs = random.Of({0, 1, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65});
    const int64_t kh = random.Of({1, 1, 2, 3, 3, 3, 5, 7}), kw = random.Of({1, 2, 3, 3, 3, 4, 5, 11});
    c.x = {batch, side(), side(), channels};
    c.kernel = {kh, kw, channels, outputs};
    int64_t out_height = side(), out_width = side();
    if (!a.free_grid) {
      out_height = a.OutputSize(0, c.x[1], kh);
      out_width = a.OutputSize(1, c.x[2], kw);
    }
    const int64_t samples = a.groups * kh * kw;
    c.offset = {batch, out_height, out_width, 2 * samples};
    c.mask = a.has_mask ? Dimensions{batch, out_height, out_width, samples} : Dimensions{0};
    c.bias = {a.has_bias ? outputs : 0};
    const int64_t work = (batch * out_height * out_width + 1) * (kh * kw * channels + 8) * (outputs + 8);
    if (work <= limit && batch * c.x[1] * c.x[2] * channels <= limit) break;
  }
  c.bfloat16 = random.OneIn(3);
  c.hostile = random.OneIn(5);
  c.workers = random.Of({1, 1, 2, 3, 4, 7});
  return c;
}

std::string Story(const DeformCase& c) {
  const auto text = [](const Dimensions& d) {
    std::string all;
    for (const int64_t n : d) all += (all.empty() ? "" : ",") + std::to_string(n);
    return "(" + all + ")";
  };
  return "deform_conv2d x " + text(c.x) + " kernel " + text(c.kernel) + " offset " + text(c.offset) + " strides " +
         text(c.attributes.strides) + " dilations " + text(c.attributes.dilations) + " padding " +
         c.attributes.padding + text(c.attributes.explicit_padding) + " groups " +
         std::to_string(c.attributes.groups) + (c.attributes.has_mask ? " mask" : "") +
         (c.attributes.has_bias ? " bias" : "") + (c.bfloat16 ? " bfloat16" : "") + (c.hostile ? " hostile" : "") +
         " workers " + std::to_string(c.workers);
}

int64_t CountOf(const Dimensions& dimensions) {
  int64_t count = 1;
  for (const int64_t size : dimensions) count *= size;
  return count;
}

void RunDeform(Random& random, const std::vector<Isa>& isas, bool concurrent) {
  DeformCase c = DrawDeform(random);
  current_story = Story(c);
  const std::string misfit = FitDeformShape(c.attributes, c.x, c.kernel, c.offset, c.mask, c.bias, &c.shape);
  if (!misfit.empty()) Fail("the shapes were refused: expected %s", misfit.c_str());
  // A gradient of another shape is another matter: the op refuses it before anything here.
  if (IsEmpty(c.shape)) return;
  const DeformShape& s = c.shape;
  const int64_t taps = s.kernel_height * s.kernel_width;
  const int64_t pixels = s.batch * s.out_height * s.out_width;
  const int64_t outputs = s.out_channels;
  const bool shifted = random.OneIn(2);

  Values x(CountOf(c.x), c.bfloat16, shifted), kernel(CountOf(c.kernel), c.bfloat16, shifted);
  Values mask(c.attributes.has_mask ? CountOf(c.mask) : 0, c.bfloat16, shifted);
  Values bias(c.attributes.has_bias ? outputs : 0, c.bfloat16, shifted);
  Values output_gradient(pixels * outputs, c.bfloat16, shifted);
  Exactly<float> offset(CountOf(c.offset), shifted);
  for (Values* values : {&x, &kernel, &mask, &bias, &output_gradient}) {
    for (int64_t i = 0; i < values->count(); ++i) values->Set(i, random.Normal());
    if (c.hostile && values->count() > 0 && random.OneIn(2)) {
      const float bad = random.Of({kNan, kInfinity, -kInfinity, 3e38f, 1e-42f});
      for (int n = 0; n < 3; ++n) values->Set(random.Below(values->count()), bad);
    }
  }
  const float reach = random.Of({0.0f, 0.7f, 3.0f, 30.0f});
  const bool whole = random.OneIn(6);
  const int64_t strange = random.Of({0, 3, 20});
  for (int64_t i = 0; i < offset.count(); ++i) {
    offset[i] = random.Normal() * reach;
    if (whole) offset[i] = std::round(offset[i]);
    if (strange > 0 && random.OneIn(strange)) offset[i] = HostileOffset(random, s);
  }

  // The same by a loop, in float64.
  std::vector<Sum> want_output(pixels * outputs), want_x(x.count()), want_kernel(kernel.count());
  std::vector<Sum> want_offset(offset.count()), want_mask(mask.count()), want_bias(bias.count());
  const int64_t wide = s.channels / s.groups;
  std::vector<bool> outside(pixels * s.groups * taps);
  const bool reference = !c.hostile;
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t b = p / (s.out_height * s.out_width), oy = p / s.out_width % s.out_height, ox = p % s.out_width;
    for (int64_t o = 0; o < outputs && reference; ++o) {
      if (bias.count() > 0) {
        want_output[p * outputs + o].Add(bias.floats[o]);
        want_bias[o].Add(output_gradient.floats[p * outputs + o]);
      }
    }
    for (int64_t sample = 0; sample < s.groups * taps; ++sample) {
      const int64_t group = sample / taps, tap = sample % taps, at = p * s.groups * taps + sample;
      const Sample place =
          SampleAt(s, oy, ox, tap / s.kernel_width, tap % s.kernel_width, offset[2 * at], offset[2 * at + 1]);
      outside[at] = !place.inside;
      if (!place.inside || !reference) continue;
      const double m = mask.count() > 0 ? mask.floats[at] : 1.0;
      const double ly = place.ly, lx = place.lx;
      const double weights[4] = {(1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx};
      const double slopes_y[4] = {lx - 1, -lx, 1 - lx, lx}, slopes_x[4] = {ly - 1, 1 - ly, -ly, ly};
      for (int64_t channel = 0; channel < wide; ++channel) {
        int64_t corner_at[4];
        double corner[4];
        for (int i = 0; i < 4; ++i) {
          const int64_t yy = place.y0 + i / 2, xx = place.x0 + i % 2;
          const bool there = yy >= 0 && yy < s.height && xx >= 0 && xx < s.width;
          corner_at[i] = there ? ((b * s.height + yy) * s.width + xx) * s.channels + group * wide + channel : -1;
          corner[i] = there ? x.floats[corner_at[i]] : 0.0;
        }
        Sum value;
        for (int i = 0; i < 4; ++i) {
          value.value += weights[i] * corner[i];
          value.size += std::fabs(corner[i]);  // A weight near 0 has the rounding error of one near 1.
        }
        double column_gradient = 0, column_size = 0;
        const int64_t row = (tap * s.channels + group * wide + channel) * outputs;
        for (int64_t o = 0; o < outputs; ++o) {
          const double weight = kernel.floats[row + o], g = output_gradient.floats[p * outputs + o];
          Sum& output = want_output[p * outputs + o];
          output.value += m * value.value * weight;
          output.size += std::fabs(m * weight) * value.size;
          want_kernel[row + o].value += m * value.value * g;
          want_kernel[row + o].size += std::fabs(m * g) * value.size;
          column_gradient += weight * g;
          column_size += std::fabs(weight * g);
        }
        const auto add = [&](Sum& sum, double factor, double size) {
          sum.value += factor * column_gradient;
          sum.size += std::fabs(size) * column_size;
        };
        for (int i = 0; i < 4; ++i) {
          if (corner_at[i] >= 0) add(want_x[corner_at[i]], m * weights[i], m);
          add(want_offset[2 * at], m * slopes_y[i] * corner[i], m * corner[i]);
          add(want_offset[2 * at + 1], m * slopes_x[i] * corner[i], m * corner[i]);
          if (mask.count() > 0) add(want_mask[at], weights[i] * corner[i], corner[i]);
        }
      }
    }
  }

  const tfcorr::DeformType type = c.bfloat16 ? tfcorr::kDeformBfloat16 : tfcorr::kDeformFloat;
  const tfcorr::DeformInputs inputs = {x.data(), kernel.data(), offset.data(),
                                       mask.count() > 0 ? mask.data() : nullptr,
                                       bias.count() > 0 ? bias.data() : nullptr};
  for (const Isa isa : isas) {
    OnCallers(concurrent, [&](int) {
      StandaloneRuntime runtime(c.workers, concurrent);
      Values output(pixels * outputs, c.bfloat16, shifted), x_gradient(x.count(), c.bfloat16, shifted);
      Values kernel_gradient(kernel.count(), c.bfloat16, shifted), mask_gradient(mask.count(), c.bfloat16, shifted);
      Exactly<float> offset_gradient(offset.count(), shifted), bias_gradient(bias.count());
      tfcorr::DeformOnCpu<StandaloneRuntime> op(tfcorr::DeformKernelsFor(isa, type), s, type, &runtime);
      if (!op.Forward(inputs, output.data()) ||
          !op.Backward(inputs, output_gradient.data(),
                       {x_gradient.data(), kernel_gradient.data(), offset_gradient.data(), mask_gradient.data(),
                        bias.count() > 0 ? bias_gradient.data() : nullptr})) {
        Fail("no memory");
      }
      for (int64_t at = 0; at < static_cast<int64_t>(outside.size()); ++at) {
        if (!outside[at]) continue;
        if (offset_gradient[2 * at] != 0 || offset_gradient[2 * at + 1] != 0 ||
            (mask.count() > 0 && mask_gradient.Read(at) != 0)) {
          Fail("sample %lld lies outside, and its gradients are %g, %g, %g", static_cast<long long>(at),
               offset_gradient[2 * at], offset_gradient[2 * at + 1], mask.count() > 0 ? mask_gradient.Read(at) : 0.0f);
        }
      }
      if (!reference) return;
      const bool narrow = c.bfloat16;
      const bool rounds_samples = narrow && (isa == Isa::kAmx || isa == Isa::kAvx512Bfloat16);
      const double terms = rounds_samples ? 0.004 : isa == Isa::kAmx ? 1.5e-5 : 3e-6;
      for (int64_t i = 0; i < output.count(); ++i) {
        Compare("output", i, output.Read(i), want_output[i], narrow, terms);
      }
      for (int64_t i = 0; i < x.count(); ++i) Compare("d_x", i, x_gradient.Read(i), want_x[i], narrow);
      for (int64_t i = 0; i < kernel.count(); ++i) {
        Compare("d_kernel", i, kernel_gradient.Read(i), want_kernel[i], narrow);
      }
      for (int64_t i = 0; i < offset.count(); ++i) Compare("d_offset", i, offset_gradient[i], want_offset[i], false);
      for (int64_t i = 0; i < mask.count(); ++i) Compare("d_mask", i, mask_gradient.Read(i), want_mask[i], narrow);
      for (int64_t i = 0; i < bias.count(); ++i) Compare("d_bias", i, bias_gradient[i], want_bias[i], false);
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Patch matching.

void RunMatch(Random& random, const std::vector<Isa>& isas, bool concurrent) {
  const int64_t p = random.Of({1, 2, 3, 3, 3, 3, 4, 5, 7});
  const int64_t limit = random.OneIn(500) ? 3000000 : 20000;
  int64_t channels, query_rows, query_cols, reference_rows, reference_cols;
  do {
    const auto side = [&] { return p - 1 + random.Of<int64_t>({1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 130, 300}); };
    channels = random.Of({1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 256, 513});
    query_rows = side();
    query_cols = side();
    reference_rows = side();
    reference_cols = side();
  } while ((query_rows - p + 1) * (query_cols - p + 1) * (reference_rows - p + 1) * (reference_cols - p + 1) *
                   (channels * p * p + 8) > limit);
  const int64_t workers = random.Of({1, 1, 2, 3, 4, 7});
  // Whole numbers make every sum exact, ties many, and the winner known to the bit.
  const int mode = static_cast<int>(random.Below(4));  // 0, 1: whole numbers; 2: real numbers; 3: hostile ones.
  current_story = "match_patches query (" + std::to_string(query_rows) + "," + std::to_string(query_cols) +
                  ") reference (" + std::to_string(reference_rows) + "," + std::to_string(reference_cols) +
                  ") channels " + std::to_string(channels) + " patch_size " + std::to_string(p) + " mode " +
                  std::to_string(mode) + " workers " + std::to_string(workers);
  const bool shifted = random.OneIn(2);
  Exactly<float> query(query_rows * query_cols * channels, shifted);
  Exactly<float> reference(reference_rows * reference_cols * channels, shifted);
  for (Exactly<float>* map : {&query, &reference}) {
    for (int64_t i = 0; i < map->count(); ++i) {
      (*map)[i] = mode < 2 ? static_cast<float>(random.Between(-1, 1)) : random.Normal();
    }
    for (int n = 0; mode == 3 && n < 3; ++n) {
      (*map)[random.Below(map->count())] = random.Of({kNan, kInfinity, -kInfinity, 3e38f, -3e38f, 1e-42f});
    }
  }
  const std::string misfit = tfcorr::MatchMisfit({1, query_rows, query_cols, channels},
                                                 {1, reference_rows, reference_cols, channels}, p);
  if (!misfit.empty()) Fail("the shapes were refused: expected %s", misfit.c_str());

  const int64_t query_height = query_rows - p + 1, query_width = query_cols - p + 1;
  const int64_t reference_height = reference_rows - p + 1, reference_width = reference_cols - p + 1;
  const int64_t queries = query_height * query_width, references = reference_height * reference_width;
  const auto cell = [&](const Exactly<float>& map, int64_t cols, int64_t y, int64_t x) {
    return &map[(y * cols + x) * channels];
  };
  // Float64 norms, and whether all is finite, of every patch.
  const auto survey = [&](const Exactly<float>& map, int64_t cols, int64_t height, int64_t width) {
    std::vector<double> energies(height * width);
    for (int64_t i = 0; i < height * width; ++i) {
      for (int64_t t = 0; t < p * p; ++t) {
        const float* features = cell(map, cols, i / width + t / p, i % width + t % p);
        for (int64_t k = 0; k < channels; ++k) energies[i] += static_cast<double>(features[k]) * features[k];
      }
    }
    return energies;
  };
  const std::vector<double> query_energy = survey(query, query_cols, query_height, query_width);
  const std::vector<double> reference_energy = survey(reference, reference_cols, reference_height, reference_width);
  const auto product = [&](int64_t q, int64_t r) {
    double sum = 0;
    for (int64_t t = 0; t < p * p; ++t) {
      const float* a = cell(query, query_cols, q / query_width + t / p, q % query_width + t % p);
      const float* b = cell(reference, reference_cols, r / reference_width + t / p, r % reference_width + t % p);
      for (int64_t k = 0; k < channels; ++k) sum += static_cast<double>(a[k]) * b[k];
    }
    return sum;
  };
  const auto weight = [](double energy) {
    const float norm = std::sqrt(static_cast<float>(energy));
    return 1.0f / (norm + tfcorr::kNormEpsilon);
  };
  // Float32 sums of squares overflow: such a patch counts as one that is not finite. Near the border either is right.
  const auto usable = [&](double energy) { return energy < 1e38; };

  tfcorr::MatchGeometry geometry = {};
  geometry.patch_size = p;
  geometry.channels = channels;
  geometry.query_rows = query_rows;
  geometry.query_cols = query_cols;
  geometry.reference_rows = reference_rows;
  geometry.reference_cols = reference_cols;
  for (const Isa isa : isas) {
    OnCallers(concurrent, [&](int) {
      StandaloneRuntime runtime(workers, concurrent);
      tfcorr::MatchOnCpu<StandaloneRuntime> match(tfcorr::MatchKernelsFor(isa), geometry, &runtime);
      if (!match.Allocate()) Fail("no memory");
      Exactly<int32_t> index(queries, shifted);
      Exactly<float> score(queries, shifted);
      match.Match(query.data(), reference.data(), index.data(), score.data());
      const bool any_usable = std::any_of(reference_energy.begin(), reference_energy.end(), usable);
      for (int64_t q = 0; q < queries; ++q) {
        if (index[q] < 0 || index[q] >= references) Fail("index[%lld] is %d", static_cast<long long>(q), index[q]);
        if (mode == 3) {
          if (query_energy[q] < 1e30 && any_usable && !(reference_energy[index[q]] < 4e38)) {
            Fail("query patch %lld got reference patch %d, which is not finite", static_cast<long long>(q), index[q]);
          }
          continue;
        }
        float best = -kInfinity;
        double best_real = -kInfinity;
        int64_t first = 0;
        for (int64_t r = 0; r < references; ++r) {
          const double correlation = product(q, r);
          const float value = static_cast<float>(correlation) * weight(reference_energy[r]);
          if (value > best) {
            best = value;
            first = r;
          }
          best_real = std::max(best_real, correlation / (std::sqrt(reference_energy[r]) + tfcorr::kNormEpsilon));
        }
        const double query_norm = std::sqrt(query_energy[q]) + tfcorr::kNormEpsilon;
        if (mode < 2 && index[q] != first) {
          Fail("index[%lld] is %d, expected %lld", static_cast<long long>(q), index[q], static_cast<long long>(first));
        }
        const double reached = product(q, index[q]) / (std::sqrt(reference_energy[index[q]]) + tfcorr::kNormEpsilon);
        if (!(reached >= best_real - 1e-5 * query_norm)) {
          Fail("index[%lld] is %d with %.9g, but there is %.9g", static_cast<long long>(q), index[q], reached,
               best_real);
        }
        if (!(std::fabs(score[q] - reached / query_norm) <= 1e-5)) {
          Fail("score[%lld] is %.9g, expected %.9g", static_cast<long long>(q), score[q], reached / query_norm);
        }
      }
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Absurd sizes: what the checks let through must have a layout whose numbers are in range.

void RunSizes(Random& random, const std::vector<Isa>& isas) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const auto any = [&] {
    return random.Of<int64_t>({0, 1, 1, 2, 3, 5, 64, 1 << 12, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, int64_t{1} << 31,
                               (int64_t{1} << 32) + 1, int64_t{1} << 40, int64_t{1} << 62, kMost});
  };
  DeformAttributes a;
  const auto pair = [&]() -> std::vector<int64_t> {
    if (random.OneIn(40)) return std::vector<int64_t>(random.Below(4), random.Of<int64_t>({-1, 0, 1}));
    return {random.OneIn(2) ? 1 : any(), random.OneIn(2) ? 1 : any()};
  };
  a.strides = pair();
  a.dilations = pair();
  a.padding = random.Of({"SAME", "VALID", "EXPLICIT", "SAME"});
  if (a.padding == "EXPLICIT" || random.OneIn(50)) {
    for (int64_t i = random.OneIn(50) ? 1 : 0; i < 4; ++i) a.explicit_padding.push_back(random.OneIn(9) ? -1 : any());
  }
  a.groups = random.OneIn(2) ? 1 : random.OneIn(20) ? 0 : any();
  a.free_grid = random.OneIn(2);
  a.has_mask = random.OneIn(2);
  a.has_bias = random.OneIn(2);
  Dimensions x = {any(), any(), any(), any()}, kernel = {any(), any(), x[3], any()};
  Dimensions offset = {x[0], any(), any(), any()}, mask = {0}, bias = {0};
  current_story = "sizes";
  if (!a.Misfit().empty()) return;
  for (int axis = 0; axis < 2; ++axis) {
    if (a.free_grid || kernel[axis] < 1 || !a.SideFits(axis, x[axis + 1], kernel[axis], 0)) continue;
    offset[axis + 1] = a.OutputSize(axis, x[axis + 1], kernel[axis]);
  }
  const int64_t samples = tfcorr::SaturatingProduct(a.groups, kernel[0], kernel[1]);
  offset[3] = random.OneIn(20) ? any() : tfcorr::SaturatingProduct(2, samples);
  if (a.has_mask) mask = {x[0], offset[1], offset[2], random.OneIn(20) ? any() : samples};
  if (a.has_bias) bias = {random.OneIn(20) ? any() : kernel[3]};
  if (random.OneIn(30)) x.pop_back();
  if (random.OneIn(30)) kernel.push_back(1);
  DeformShape shape;
  if (FitDeformShape(a, x, kernel, offset, mask, bias, &shape).empty() && !IsEmpty(shape)) {
    for (const Isa isa : isas) {
      tfcorr::DeformLayout layout;
      const tfcorr::DeformType type = random.Of({tfcorr::kDeformFloat, tfcorr::kDeformBfloat16});
      tfcorr::DeformKernelsFor(isa, type).layout(shape, random.Of({1, 2, 64}), &layout);
      for (const int64_t size : {layout.image_size, layout.packed_kernel_size, layout.forward_scratch, layout.units,
                                 layout.kernel_gradient_size, layout.sample_gradient_size, layout.backward_scratch}) {
        if (size < 0) Fail("a layout of %lld values", static_cast<long long>(size));
      }
    }
  }

  const Dimensions query = {any(), any(), any(), any()}, reference = {query[0], any(), any(), query[3]};
  const int64_t patch_size = random.OneIn(2) ? random.Between(-1, 5) : any();
  const bool refused = !tfcorr::MatchMisfit(query, reference, patch_size).empty();
  // The op plans only what is not empty; then the maps exist, and so their sizes are those of memory.
  const int64_t cells = std::max(tfcorr::SaturatingProduct(query[1], query[2], query[3]),
                                 tfcorr::SaturatingProduct(reference[1], reference[2], reference[3]));
  if (refused || cells > tfcorr::kMaxValues) return;
  tfcorr::MatchGeometry geometry = {};
  geometry.patch_size = patch_size;
  geometry.channels = query[3];
  geometry.query_rows = query[1];
  geometry.query_cols = query[2];
  geometry.reference_rows = reference[1];
  geometry.reference_cols = reference[2];
  for (const Isa isa : isas) {
    const tfcorr::MatchPatchesKernels& kernels = tfcorr::MatchKernelsFor(isa);
    kernels.plan(&geometry);
    if (kernels.packed_row_size(geometry) < 0 || kernels.scratch_size(geometry) < 0) Fail("a negative size");
  }
}

int64_t Number(const char* text) {
  char* end;
  const int64_t value = std::strtoll(text, &end, 10);
  if (*text == '\0' || *end != '\0') {
    std::fprintf(stderr, "fuzz_ops: expected a whole number, got %s\n", text);
    std::exit(2);
  }
  return value;
}

}  // namespace

int main(int count, char** arguments) {
  int64_t cases = 1000, first = 0, seed = 1, threads = 1;
  std::string kind;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) {
      std::fprintf(stderr, "fuzz_ops: %s needs a value\n", name.c_str());
      return 2;
    }
    if (name == "--cases") {
      cases = Number(arguments[i + 1]);
    } else if (name == "--first") {
      first = Number(arguments[i + 1]);
    } else if (name == "--seed") {
      seed = Number(arguments[i + 1]);
    } else if (name == "--threads") {
      threads = Number(arguments[i + 1]);
    } else if (name == "--kind") {
      kind = arguments[i + 1];
    } else {
      std::fprintf(stderr, "fuzz_ops: unknown option %s\n", name.c_str());
      return 2;
    }
  }
  const std::vector<Isa> all = Available();
  int64_t done[3] = {};
  for (int64_t n = first; n < first + cases; ++n) {
    current_case = n;
    // One more step of the generator between neighbouring numbers than their difference.
    Random random(Random(static_cast<uint64_t>(seed) * 0x2545f4914f6cdd1dull + static_cast<uint64_t>(n)).Bits());
    const std::vector<Isa> isas = {all[random.Below(static_cast<int64_t>(all.size()))]};
    int which = static_cast<int>(random.Of({0, 0, 0, 0, 1, 1, 1, 2}));
    if (!kind.empty()) which = kind == "deform" ? 0 : kind == "match" ? 1 : 2;
    ++done[which];
    if (which == 0) RunDeform(random, isas, threads > 1);
    if (which == 1) RunMatch(random, isas, threads > 1);
    if (which == 2) RunSizes(random, isas);
    if ((n - first + 1) % 100000 == 0) {
      std::printf("%lld cases\n", static_cast<long long>(n - first + 1));
      std::fflush(stdout);
    }
  }
  std::printf("fuzz_ops: %lld cases passed (deform_conv2d %lld, match_patches %lld, sizes %lld; seed %lld, %zu "
              "instruction sets)\n",
              static_cast<long long>(cases), static_cast<long long>(done[0]), static_cast<long long>(done[1]),
              static_cast<long long>(done[2]), static_cast<long long>(seed), all.size());
  return 0;
}
