// The forward pass of deform_conv2d on tiles (kernels/gemm_amx.h), with emulated tiles, against the generic kernels.
//
//     amx_emulation [--cases N] [--seed S]
//
// Made from this file, kernels/deform_conv2d_amx.cc compiled with TFCORR_EMULATE_TILES, and
// kernels/deform_conv2d_generic.cc, best under AddressSanitizer and UndefinedBehaviorSanitizer; see
// tests/ops/test_amx.py. Each case draws shapes, attributes and values; every array has exactly its size on the heap,
// and memory begins as NaN. Beside the cases: the emulation by numbers worked out by hand, infinities and NaN, and that
// a product with a pass left out is noticed. Exit status 0: all as it should be.

#define TFCORR_ISA amx
#define TFCORR_EMULATE_TILES

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "deform_conv2d_cpu.h"
#include "deform_conv2d_geometry.h"
#include "kernels/deform_conv2d.h"
#include "kernels/tiles.h"

namespace {

using tfcorr::DeformAttributes;
using tfcorr::DeformShape;
namespace amx = tfcorr::amx;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kAllPasses = ~0;
// Of the largest output.
constexpr double kFloatTolerance = 2e-5;
constexpr double kBfloat16Tolerance = 1e-2;

std::string story;

[[noreturn]] void Fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "amx_emulation: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n  %s\n", story.c_str());
  va_end(arguments);
  std::abort();
}

// ---------------------------------------------------------------------------------------------------------------
// Drawing, memory, threads.

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return Between(1, n) == 1; }
  template <class T>
  T Of(std::initializer_list<T> choices) {
    return choices.begin()[Between(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  float Normal() {
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(engine_() >> 40) * 0x1p-24f;
    return sum;
  }

 private:
  std::mt19937_64 engine_;
};

class Runtime {
 public:
  static constexpr int64_t kScratchUnit = 16;

  explicit Runtime(int64_t workers) : workers_(workers) {}
  int64_t threads() const { return workers_; }
  float* Floats(int64_t count) {
    void* memory;
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    if (posix_memalign(&memory, 64, std::max<size_t>(bytes, 1)) != 0) Fail("no memory for %zu bytes", bytes);
    std::memset(memory, 0xff, bytes);
    memory_.emplace_back(memory, std::free);
    return static_cast<float*>(memory);
  }
  template <class Work>
  void ParallelFor(int64_t count, int64_t block, const Work& work) {
    std::vector<std::thread> threads;
    for (int64_t begin = 0; begin < count; begin += block) {
      threads.emplace_back([&work, begin, block, count] { work(begin, std::min(count, begin + block)); });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  const int64_t workers_;
  std::vector<std::shared_ptr<void>> memory_;
};

// Values in the case's type.
class Values {
 public:
  Values(int64_t count, bool bfloat16) : bfloat16_(bfloat16), bytes_(count * (bfloat16 ? 2 : 4), '\xff') {
    bytes_.shrink_to_fit();
  }
  int64_t count() const { return static_cast<int64_t>(bytes_.size()) / (bfloat16_ ? 2 : 4); }
  void* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
  void Set(int64_t i, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (bfloat16_) {
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);  // Any rounding: all kernels get the same.
      std::memcpy(bytes_.data() + 2 * i, &upper, sizeof(upper));
    } else {
      std::memcpy(bytes_.data() + 4 * i, &value, sizeof(value));
    }
  }
  float Get(int64_t i) const {
    uint32_t bits = 0;
    if (bfloat16_) {
      std::memcpy(reinterpret_cast<char*>(&bits) + 2, bytes_.data() + 2 * i, 2);
    } else {
      std::memcpy(&bits, bytes_.data() + 4 * i, 4);
    }
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

 private:
  const bool bfloat16_;
  std::vector<char> bytes_;
};

struct Case {
  DeformAttributes attributes;
  DeformShape shape;
  bool bfloat16;
  int64_t workers;
  std::unique_ptr<Values> x, kernel, mask, bias;
  std::vector<float> offset;

  int64_t Outputs() const { return shape.batch * shape.out_height * shape.out_width * shape.out_channels; }
};

// Normal values; the group's channels and outputs are the given ones.
Case Draw(Random& random, int64_t group_channels, int64_t outputs, bool bfloat16) {
  Case c;
  c.bfloat16 = bfloat16;
  c.workers = random.Of<int64_t>({1, 1, 2, 3});
  DeformAttributes& a = c.attributes;
  a.strides = {random.Of<int64_t>({1, 1, 2}), random.Of<int64_t>({1, 1, 2})};
  a.dilations = {random.Of<int64_t>({1, 1, 2}), random.Of<int64_t>({1, 1, 2})};
  a.padding = random.Of<const char*>({"SAME", "SAME", "VALID"});
  a.groups = random.Of<int64_t>({1, 1, 2, 3, 8});
  a.has_mask = !random.OneIn(3);
  a.has_bias = !random.OneIn(3);
  const int64_t side = random.Of<int64_t>({1, 3, 3, 3, 5}), height = random.Between(9, 15);
  const int64_t width = random.Between(9, random.OneIn(6) ? 80 : 20);
  const int64_t batch = random.Of<int64_t>({1, 1, 2}), channels = a.groups * group_channels;
  const int64_t out_height = a.OutputSize(0, height, side), out_width = a.OutputSize(1, width, side);
  const int64_t samples = a.groups * side * side, places = batch * out_height * out_width;
  story = "x " + std::to_string(batch) + "x" + std::to_string(height) + "x" + std::to_string(width) + "x" +
          std::to_string(channels) + ", " + std::to_string(a.groups) + " groups, kernel " + std::to_string(side) +
          ", outputs " + std::to_string(outputs) + ", " + a.padding + (a.has_mask ? ", mask" : "") +
          (a.has_bias ? ", bias" : "") + (bfloat16 ? ", bfloat16" : "");
  const std::string misfit = FitDeformShape(
      a, {batch, height, width, channels}, {side, side, channels, outputs},
      {batch, out_height, out_width, 2 * samples},
      a.has_mask ? tfcorr::Dimensions{batch, out_height, out_width, samples} : tfcorr::Dimensions{0},
      {a.has_bias ? outputs : 0}, &c.shape);
  if (!misfit.empty()) Fail("the shapes were refused: expected %s", misfit.c_str());
  const auto values = [&](int64_t count) {
    auto drawn = std::make_unique<Values>(count, bfloat16);
    for (int64_t i = 0; i < count; ++i) drawn->Set(i, random.Normal());
    return drawn;
  };
  c.x = values(batch * height * width * channels);
  c.kernel = values(side * side * channels * outputs);
  c.mask = values(a.has_mask ? places * samples : 0);
  c.bias = values(a.has_bias ? outputs : 0);
  const float reach = random.Of({0.0f, 0.7f, 3.0f});
  c.offset.resize(places * 2 * samples);
  c.offset.shrink_to_fit();
  for (float& offset : c.offset) offset = reach * random.Normal();
  return c;
}

std::vector<float> Run(const Case& c, const tfcorr::DeformKernels& kernels) {
  Runtime runtime(c.workers);
  Values output(c.Outputs(), c.bfloat16);
  const tfcorr::DeformType type = c.bfloat16 ? tfcorr::kDeformBfloat16 : tfcorr::kDeformFloat;
  tfcorr::DeformOnCpu<Runtime> op(kernels, c.shape, type, &runtime);
  if (!op.Forward({c.x->data(), c.kernel->data(), c.offset.data(), c.mask->data(), c.bias->data()}, output.data())) {
    Fail("no memory");
  }
  std::vector<float> result(output.count());
  for (int64_t i = 0; i < output.count(); ++i) result[i] = output.Get(i);
  return result;
}

double ToleranceOf(const Case& c) { return c.bfloat16 ? kBfloat16Tolerance : kFloatTolerance; }

// The largest difference between finite outputs, over the largest of them; what is not finite has to agree.
double Difference(const std::vector<float>& have, const std::vector<float>& want) {
  double largest = 1e-30, difference = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const bool same = std::isnan(want[i]) ? std::isnan(have[i]) : have[i] == want[i];
    if (!std::isfinite(want[i]) || !std::isfinite(have[i])) {
      if (!same) Fail("output %zu is %g, expected %g", i, have[i], want[i]);
      continue;
    }
    largest = std::max(largest, std::fabs(static_cast<double>(want[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(have[i]) - want[i]));
  }
  return difference / largest;
}

double DifferenceOf(const Case& c, int passes) {
  amx::emulated_passes = passes;
  const double difference = Difference(Run(c, amx::kDeformKernels), Run(c, tfcorr::generic::kDeformKernels));
  amx::emulated_passes = kAllPasses;
  return difference;
}

// ---------------------------------------------------------------------------------------------------------------
// Checks.

// C, A and B of one tile product whose first elements are the given ones, zeros elsewhere.
float Product(float c, std::initializer_list<float> a, std::initializer_list<float> b) {
  float sums[16][16] = {{c}};
  uint16_t left[16][32] = {}, right[16][32] = {};
  const auto upper = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
  };
  for (size_t k = 0; k < a.size(); ++k) left[0][k] = upper(a.begin()[k]);
  for (size_t k = 0; k < b.size(); ++k) right[k / 2][k % 2] = upper(b.begin()[k]);  // Column 0.
  amx::configure_tiles();
  amx::tile_load<0>(sums, 64);
  amx::tile_load<4>(left, 64);
  amx::tile_load<6>(right, 64);
  amx::tile_multiply<0, 4, 6>();
  amx::tile_store<0>(sums, 64);
  amx::release_tiles();
  return sums[0][0];
}

void CheckEmulation() {
  const auto expect = [](const char* what, float have, float want) {
    if (!(have == want)) Fail("the emulation, %s: %.9g, expected %.9g", what, have, want);
  };
  story = "";
  expect("pairs", Product(1, {2, 3, 4, 5}, {6, 7, 8, 9}), 1 + 12 + 21 + 32 + 45);
  // 2^24 + 1 is rounded to even; even and odd k have sums of their own, in which nothing is lost here.
  expect("rounding", Product(0, {0x1p24f, 0, 1}, {1, 0, 1}), 0x1p24f);
  expect("rounding up", Product(0, {0x1p24f, 0, 3}, {1, 0, 1}), 0x1p24f + 4);
  expect("two sums", Product(0, {0x1p24f, 1, 0, 1}, {1, 1, 0, 1}), 0x1p24f + 2);
  expect("products before C", Product(0x1p24f, {1, 1}, {1, 1}), 0x1p24f + 2);
  // (1 + 2^-7)^2 - (1 + 2^-6) = 2^-14.
  expect("fused", Product(0, {-1.015625f, 0, 1.0078125f}, {1, 0, 1.0078125f}), 0x1p-14f);
  expect("a small input", Product(0, {0x1p-130f}, {0x1p100f}), 0);
  expect("a small sum", Product(0x1p-130f, {0}, {0}), 0);
  expect("a small result", Product(0, {0x1p-100f}, {0x1p-30f}), 0);
  expect("the smallest", Product(0, {0x1p-100f}, {0x1p-26f}), 0x1p-126f);
  expect("infinity", Product(1, {kInfinity}, {-2}), -kInfinity);
  if (!std::isnan(Product(1, {kInfinity}, {0}))) Fail("the emulation: infinity times zero is no NaN");
  // The columns of B and the rows of A keep apart, and strides are obeyed.
  std::vector<float> sums(16 * 20, 7.0f);
  uint16_t left[16][40] = {}, right[16][64] = {};
  left[3][5] = 0x4000;       // 2
  right[2][2 * 9 + 1] = 0x4040;  // k = 5, column 9: 3
  amx::configure_tiles();
  amx::tile_load<2>(sums.data(), 80);
  amx::tile_load<5>(left, 80);
  amx::tile_load<7>(right, 128);
  amx::tile_multiply<2, 5, 7>();
  amx::tile_store<2>(sums.data(), 80);
  amx::release_tiles();
  for (size_t i = 0; i < sums.size(); ++i) expect("places", sums[i], i == 3 * 20 + 9 ? 13.0f : 7.0f);
}

void CheckPasses(Random& random) {
  story = "self-test";
  if (!amx::TilesAgree()) Fail("the self-test fails");
  for (const int pass : {0, 1, 2}) {
    amx::emulated_passes = ~(1 << pass);
    if (amx::TilesAgree()) Fail("the self-test does not notice that pass %d is left out", pass);
    amx::emulated_passes = kAllPasses;
    for (int i = 0; i < 3; ++i) {
      const Case c = Draw(random, random.Between(1, 40), random.Between(1, 70), false);
      const double difference = DifferenceOf(c, ~(1 << pass));
      if (difference <= 2 * kFloatTolerance) Fail("without pass %d the difference is %.3g", pass, difference);
    }
  }
}

// Infinities and NaN come out as they do without tiles, and leave the other outputs alone.
void CheckNonFinite(Random& random) {
  for (int i = 0; i < 20; ++i) {
    Case c = Draw(random, random.Between(1, 40), random.Between(1, 40), random.OneIn(3));
    Values* const values = random.Of({c.x.get(), c.x.get(), c.kernel.get(), c.mask.get(), c.bias.get()});
    const float bad = random.Of({kInfinity, -kInfinity, kNan});
    story += ", with " + std::to_string(bad) + (values == c.kernel.get() ? " in the kernel" : "");
    for (int n = 0; n < 2 && values->count() > 0; ++n) values->Set(random.Between(0, values->count() - 1), bad);
    const double difference = DifferenceOf(c, kAllPasses);
    if (!(difference <= ToleranceOf(c))) Fail("the difference is %.3g", difference);
  }
  // A NaN without upper bits, next to the largest number, which rounding must not make infinite; and weights that
  // bfloat16 holds exactly: infinity times their low part, zero, must not come in.
  Case c = Draw(random, 7, 5, false);
  story += ", extremes";
  const uint32_t bits = 0x7f800001;
  float nan;
  std::memcpy(&nan, &bits, sizeof(nan));
  for (int64_t i = 0; i < c.kernel->count(); ++i) c.kernel->Set(i, i % 2 == 0 ? 0.0625f : -0.0625f);
  for (auto& offset : c.offset) offset = 0.0f;
  c.x->Set(0, nan);
  c.x->Set(c.x->count() / 2, std::numeric_limits<float>::max());
  c.x->Set(c.x->count() - 1, kInfinity);
  const double difference = DifferenceOf(c, kAllPasses);
  if (!(difference <= ToleranceOf(c))) Fail("the difference is %.3g", difference);
}

}  // namespace

int main(int count, char** arguments) {
  int64_t cases = 100, seed = 1;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = arguments[i];
    if (name != "--cases" && name != "--seed") {
      std::fprintf(stderr, "amx_emulation: unknown option %s\n", name.c_str());
      return 2;
    }
    (name == "--cases" ? cases : seed) = std::strtoll(arguments[i + 1], nullptr, 10);
  }
  CheckEmulation();
  Random random(static_cast<uint64_t>(seed));
  CheckPasses(random);
  CheckNonFinite(random);
  double worst[2] = {};
  for (int64_t n = 0; n < cases; ++n) {
    const bool bfloat16 = random.OneIn(3);
    const Case c = Draw(random, random.Between(1, 40), random.Between(1, 70), bfloat16);
    const double difference = DifferenceOf(c, kAllPasses);
    if (!(difference <= ToleranceOf(c))) {
      Fail("case %lld: the difference is %.3g of the largest output", static_cast<long long>(n), difference);
    }
    worst[bfloat16] = std::max(worst[bfloat16], difference);
  }
  std::printf("amx_emulation: %lld cases passed (largest difference: float32 %.2g, bfloat16 %.2g)\n",
              static_cast<long long>(cases), worst[0], worst[1]);
  return 0;
}
