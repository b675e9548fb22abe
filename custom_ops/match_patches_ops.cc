// The op `Tfcorr>MatchPatches`: registration, shape function, and the CPU's kernel.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "isa.h"
#include "kernels/match_patches.h"
#include "match_patches_cpu.h"
#include "match_patches_geometry.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow_runtime.h"

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

class MatchPatchesOp : public OpKernel {
 public:
  explicit MatchPatchesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("patch_size", &patch_size_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& query = context->input(0);
    const Tensor& reference = context->input(1);
    const std::string misfit = MatchMisfit(DimensionsOf(query.shape()), DimensionsOf(reference.shape()), patch_size_);
    OP_REQUIRES(context, misfit.empty(),
                Refusal(misfit, query.shape().DebugString(), reference.shape().DebugString(), patch_size_));

    const int64_t batch = query.dim_size(0);
    const TensorShape shape({batch, query.dim_size(1) - patch_size_ + 1, query.dim_size(2) - patch_size_ + 1});
    Tensor *index, *score;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &index));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &score));
    if (batch == 0) return;

    MatchGeometry geometry = {};
    geometry.patch_size = patch_size_;
    geometry.channels = query.dim_size(3);
    geometry.query_rows = query.dim_size(1);
    geometry.query_cols = query.dim_size(2);
    geometry.reference_rows = reference.dim_size(1);
    geometry.reference_cols = reference.dim_size(2);
    TensorflowRuntime runtime(context);
    MatchOnCpu<TensorflowRuntime> match(MatchKernelsFor(SelectIsa()), geometry, &runtime);
    OP_REQUIRES(context, match.Allocate(), runtime.status());
    const int64_t query_size = query.NumElements() / batch;
    const int64_t reference_size = reference.NumElements() / batch;
    const int64_t matches = shape.num_elements() / batch;
    for (int64_t b = 0; b < batch; ++b) {
      match.Match(query.flat<float>().data() + b * query_size, reference.flat<float>().data() + b * reference_size,
                  index->flat<int32_t>().data() + b * matches, score->flat<float>().data() + b * matches);
    }
  }

 private:
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
