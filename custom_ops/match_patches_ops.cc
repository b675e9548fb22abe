// The op `Tfcorr>MatchPatches`: registration, shape function, and the CPU kernel's checks, plan and threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "isa.h"
#include "kernels/match_patches.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace tfcorr {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Added to every patch norm, so that an all-zero patch scores 0.
constexpr float kNormEpsilon = 1e-5f;

absl::Status Refusal(absl::string_view expected, absl::string_view query, absl::string_view reference,
                     int64_t patch_size) {
  return absl::InvalidArgumentError(absl::StrCat("match_patches expects ", expected, ", got query ", query,
                                                 " and reference ", reference, ", patch_size ", patch_size, "."));
}

absl::Status MatchPatchesShape(InferenceContext* c) {
  ShapeHandle query, reference;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &query));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &reference));
  int64_t patch_size;
  TF_RETURN_IF_ERROR(c->GetAttr("patch_size", &patch_size));
  DimensionHandle batch, channels, unused;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(query, 0), c->Dim(reference, 0), &batch));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(query, 3), c->Dim(reference, 3), &channels));
  DimensionHandle patches[2];
  for (int axis = 1; axis <= 2; ++axis) {
    for (ShapeHandle map : {query, reference}) {
      if (c->ValueKnown(c->Dim(map, axis)) && c->Value(c->Dim(map, axis)) < patch_size) {
        return Refusal("maps of at least patch_size on each side", c->DebugString(query), c->DebugString(reference),
                       patch_size);
      }
    }
    TF_RETURN_IF_ERROR(c->Subtract(c->Dim(query, axis), patch_size - 1, &patches[axis - 1]));
  }
  const ShapeHandle matches = c->MakeShape({batch, patches[0], patches[1]});
  c->set_output(0, matches);
  c->set_output(1, matches);
  return absl::OkStatus();
}

const MatchPatchesKernels& SelectKernels() {
#if defined(__x86_64__)
  switch (SelectIsa()) {
    case Isa::kAvx512:
      return avx512::kMatchPatchesKernels;
    case Isa::kAvx2:
      return avx2::kMatchPatchesKernels;
    case Isa::kGeneric:
      break;
  }
#endif
  return generic::kMatchPatchesKernels;
}

// Runs work(0), ..., work(count - 1), each on its own, on TensorFlow's CPU pool and this thread.
template <class Work>
void ParallelFor(OpKernelContext* context, int64_t count, const Work& work) {
  tensorflow::thread::ThreadPool* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  pool->ParallelFor(count, tensorflow::thread::ThreadPool::SchedulingParams::Fixed(1),
                    [&work](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) work(i);
                    });
}

// Norms of all patches of a map from the energies of its cells: (rows, cols) -> (rows - p + 1, cols - p + 1).
// In place: no norm is written before its energies have been read.
void PatchNorms(int64_t rows, int64_t cols, int64_t patch_size, float* values) {
  const int64_t patch_rows = rows - patch_size + 1, patch_cols = cols - patch_size + 1;
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < patch_cols; ++x) {
      float sum = values[y * cols + x];
      for (int64_t j = 1; j < patch_size; ++j) sum += values[y * cols + x + j];
      values[y * patch_cols + x] = sum;
    }
  }
  for (int64_t y = 0; y < patch_rows; ++y) {
    for (int64_t x = 0; x < patch_cols; ++x) {
      float sum = values[y * patch_cols + x];
      for (int64_t i = 1; i < patch_size; ++i) sum += values[(y + i) * patch_cols + x];
      values[y * patch_cols + x] = std::sqrt(sum);
    }
  }
}

class MatchPatchesOp : public OpKernel {
 public:
  explicit MatchPatchesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("patch_size", &patch_size_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& query = context->input(0);
    const Tensor& reference = context->input(1);
    OP_REQUIRES_OK(context, Check(query.shape(), reference.shape()));

    const MatchPatchesKernels& kernels = SelectKernels();
    MatchGeometry geometry;
    geometry.patch_size = patch_size_;
    geometry.channels = query.dim_size(3);
    geometry.query_rows = query.dim_size(1);
    geometry.query_cols = query.dim_size(2);
    geometry.reference_rows = reference.dim_size(1);
    geometry.reference_cols = reference.dim_size(2);
    kernels.plan(&geometry);

    const TensorShape shape(
        {query.dim_size(0), geometry.query_patch_rows(), geometry.query_cols - geometry.halo()});
    Tensor *index, *score;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &index));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &score));
    if (shape.num_elements() == 0) return;

    Workspace space(context, geometry, kernels);
    OP_REQUIRES_OK(context, space.Allocate());
    const int64_t query_size = query.NumElements() / query.dim_size(0);
    const int64_t reference_size = reference.NumElements() / query.dim_size(0);
    const int64_t matches = shape.num_elements() / query.dim_size(0);
    for (int64_t b = 0; b < query.dim_size(0); ++b) {
      space.Prepare(query.flat<float>().data() + b * query_size, reference.flat<float>().data() + b * reference_size);
      space.Walk();
      space.Finish(index->flat<int32_t>().data() + b * matches, score->flat<float>().data() + b * matches);
    }
  }

 private:
  absl::Status Check(const TensorShape& query, const TensorShape& reference) const {
    const auto refuse = [&](const char* expected) {
      return Refusal(expected, query.DebugString(), reference.DebugString(), patch_size_);
    };
    if (query.dims() != 4 || reference.dims() != 4) return refuse("two maps (batch, height, width, channels)");
    if (query.dim_size(0) != reference.dim_size(0)) return refuse("the same batch in both maps");
    if (query.dim_size(3) != reference.dim_size(3)) return refuse("the same channels in both maps");
    if (query.dim_size(3) == 0) return refuse("at least one channel");
    for (int axis = 1; axis <= 2; ++axis) {
      if (query.dim_size(axis) < patch_size_ || reference.dim_size(axis) < patch_size_) {
        return refuse("maps of at least patch_size on each side");
      }
    }
    if ((reference.dim_size(1) - patch_size_ + 1) >
        std::numeric_limits<int32_t>::max() / (reference.dim_size(2) - patch_size_ + 1)) {
      return refuse("fewer reference patches than 2^31, so that an int32 can count them");
    }
    return absl::OkStatus();
  }

  // One problem's memory and the steps of its solution, used again for every entry of the batch.
  class Workspace {
   public:
    Workspace(OpKernelContext* context, const MatchGeometry& geometry, const MatchPatchesKernels& kernels)
        : context_(context), geometry_(geometry), kernels_(kernels) {
      PlanUnits(context->device()->tensorflow_cpu_worker_threads()->num_threads);
    }

    absl::Status Allocate() {
      // Rows of cells whose distance is a multiple of 1 KB fall into few sets of the L1 cache.
      reference_stride_ = geometry_.channels % 256 == 0 ? geometry_.channels + 16 : geometry_.channels;
      const int64_t copied = reference_stride_ == geometry_.channels
                                 ? 0
                                 : geometry_.reference_rows * geometry_.reference_cols * reference_stride_;
      TF_RETURN_IF_ERROR(Floats(geometry_.query_rows * kernels_.packed_row_size(geometry_), &packed_query_));
      TF_RETURN_IF_ERROR(Floats(copied, &reference_copy_));
      TF_RETURN_IF_ERROR(Floats(geometry_.query_rows * geometry_.query_cols, &query_norm_));
      TF_RETURN_IF_ERROR(Floats(geometry_.reference_rows * geometry_.reference_cols, &weight_));
      TF_RETURN_IF_ERROR(Floats(workers_ * kernels_.scratch_size(geometry_), &scratch_));
      TF_RETURN_IF_ERROR(Floats(workers_ * state_size(), &best_score_));
      return context_->allocate_temp(tensorflow::DT_INT32, TensorShape({workers_ * state_size()}), &best_index_);
    }

    // Packs the query, and computes the norms of both maps' patches.
    void Prepare(const float* query, const float* reference) {
      reference_ = reference_stride_ == geometry_.channels ? reference : data(reference_copy_);
      const int64_t rows = std::max(geometry_.query_rows, geometry_.reference_rows);
      const int64_t channels = geometry_.channels;
      ParallelFor(context_, rows, [&](int64_t y) {
        if (y < geometry_.query_rows) {
          const float* row = query + y * geometry_.query_cols * channels;
          kernels_.pack_row(geometry_, row, data(packed_query_) + y * kernels_.packed_row_size(geometry_));
          kernels_.energy(geometry_.query_cols, channels, row, data(query_norm_) + y * geometry_.query_cols);
        }
        if (y < geometry_.reference_rows) {
          const int64_t first = y * geometry_.reference_cols;
          kernels_.energy(geometry_.reference_cols, channels, reference + first * channels, data(weight_) + first);
          if (reference_ != reference) {
            for (int64_t i = first; i < first + geometry_.reference_cols; ++i) {
              std::copy_n(reference + i * channels, channels, data(reference_copy_) + i * reference_stride_);
            }
          }
        }
      });
      PatchNorms(geometry_.query_rows, geometry_.query_cols, geometry_.patch_size, data(query_norm_));
      PatchNorms(geometry_.reference_rows, geometry_.reference_cols, geometry_.patch_size, data(weight_));
      const int64_t patches = geometry_.reference_patch_rows() * geometry_.reference_tiles.patches;
      for (float* w = data(weight_); w < data(weight_) + patches; ++w) {
        *w = std::isfinite(*w) ? 1.0f / (*w + kNormEpsilon) : std::numeric_limits<float>::quiet_NaN();
      }
    }

    // Visits all pairs of patches. Each worker takes units until none is left and keeps a maximum of its own, so
    // that no thread waits for another, and the result depends on neither their number nor their order.
    void Walk() {
      std::atomic<int64_t> next{0};
      ParallelFor(context_, workers_, [&](int64_t worker) {
        float* scratch = data(scratch_) + worker * kernels_.scratch_size(geometry_);
        const RunningMaximum maximum = state(worker);
        std::fill_n(scratch, kernels_.scratch_size(geometry_), 0.0f);
        std::fill_n(maximum.score, state_size(), -std::numeric_limits<float>::infinity());
        std::fill_n(maximum.index, state_size(), 0);
        for (int64_t i = next++; i < units_; i = next++) {
          kernels_.walk(geometry_, unit(i), data(packed_query_), reference_, reference_stride_, data(weight_),
                        scratch, maximum);
        }
      });
    }

    // Merges the workers' maxima, divides by the query's norms, and writes both outputs of one map.
    void Finish(int32_t* index, float* score) {
      const ColumnTiles& tiles = geometry_.query_tiles;
      ParallelFor(context_, geometry_.query_patch_rows(), [&](int64_t y) {
        for (int64_t x = 0; x < tiles.patches; ++x) {
          const int64_t tile = x / tiles.width;
          const int64_t at = (y * tiles.count + tile) * geometry_.query_lanes + x - tiles.begin(tile);
          float best = state(0).score[at];
          int32_t best_index = state(0).index[at];
          for (int64_t worker = 1; worker < workers_; ++worker) {
            const float other = state(worker).score[at];
            const int32_t other_index = state(worker).index[at];
            if (other > best || (other == best && other_index < best_index)) {
              best = other;
              best_index = other_index;
            }
          }
          const int64_t target = y * tiles.patches + x;
          index[target] = best_index;
          score[target] = best / (data(query_norm_)[target] + kNormEpsilon);
        }
      });
    }

   private:
    static constexpr int64_t kDiagonals = 2;

    // A unit of work is one band of query rows on two neighbouring diagonals of one pair of tiles. Bands repeat
    // p - 1 rows, so they are cut only as far as is needed to give every worker some units.
    void PlanUnits(int64_t threads) {
      const int64_t tiles = geometry_.query_tiles.count * geometry_.reference_tiles.count;
      diagonals_ = geometry_.query_patch_rows() + geometry_.reference_patch_rows() - 1;
      pairs_ = (diagonals_ + kDiagonals - 1) / kDiagonals;
      const int64_t wanted = 8 * threads;
      const int64_t shortest = 8 * geometry_.patch_size;
      const int64_t most = std::max<int64_t>(1, geometry_.query_patch_rows() / shortest);
      bands_ = threads == 1 ? 1 : std::clamp<int64_t>((wanted + pairs_ * tiles - 1) / (pairs_ * tiles), 1, most);
      units_ = bands_ * pairs_ * tiles;
      workers_ = std::min(threads, units_);
    }

    // The units in order: long diagonals, those in the middle, first, so that the workers end together.
    MatchWalk unit(int64_t i) const {
      MatchWalk walk;
      walk.reference_tile = i % geometry_.reference_tiles.count;
      i /= geometry_.reference_tiles.count;
      walk.query_tile = i % geometry_.query_tiles.count;
      i /= geometry_.query_tiles.count;
      const int64_t band = i % bands_, place = i / bands_;
      const int64_t middle = pairs_ / 2;
      const int64_t pair = OutwardFrom(middle, place);
      walk.diagonal = pair * kDiagonals - (geometry_.query_patch_rows() - 1);
      walk.diagonals = std::min(kDiagonals, diagonals_ - pair * kDiagonals);
      walk.query_begin = band * geometry_.query_patch_rows() / bands_;
      walk.query_end = (band + 1) * geometry_.query_patch_rows() / bands_;
      return walk;
    }

    // The numbers from `middle` outward, to both sides in turn, the lower first.
    static int64_t OutwardFrom(int64_t middle, int64_t place) {
      const int64_t distance = (place + 1) / 2;
      return place % 2 == 1 ? middle - distance : middle + distance;
    }

    int64_t state_size() const {
      return geometry_.query_patch_rows() * geometry_.query_tiles.count * geometry_.query_lanes;
    }
    RunningMaximum state(int64_t worker) {
      return {data(best_score_) + worker * state_size(), best_index_.flat<int32_t>().data() + worker * state_size()};
    }

    absl::Status Floats(int64_t count, Tensor* tensor) {
      return context_->allocate_temp(tensorflow::DT_FLOAT, TensorShape({count}), tensor);
    }
    static float* data(Tensor& tensor) { return tensor.flat<float>().data(); }

    OpKernelContext* const context_;
    const MatchGeometry geometry_;
    const MatchPatchesKernels& kernels_;
    int64_t diagonals_, pairs_, bands_, units_, workers_;
    int64_t reference_stride_ = 0;
    const float* reference_ = nullptr;
    Tensor packed_query_, reference_copy_, query_norm_, weight_, scratch_, best_score_, best_index_;
  };

  int64_t patch_size_;
};

REGISTER_OP("Tfcorr>MatchPatches")
    .Input("query: float")
    .Input("reference: float")
    .Output("index: int32")
    .Output("score: float")
    .Attr("patch_size: int >= 1 = 3")
    .SetShapeFn(MatchPatchesShape)
    .Doc(R"doc(
For every query patch the reference patch with the highest normalised correlation.

query: (batch, height, width, channels).
reference: (batch, height, width, channels); height and width may differ from the query's.
index: (batch, height - patch_size + 1, width - patch_size + 1), row-major in the reference's grid of whole patches;
  of equal scores the lowest.
score: q . r / ((|r| + 1e-5) (|q| + 1e-5)) over the two patches.
)doc");

REGISTER_KERNEL_BUILDER(Name("Tfcorr>MatchPatches").Device(tensorflow::DEVICE_CPU), MatchPatchesOp);

}  // namespace
}  // namespace tfcorr
