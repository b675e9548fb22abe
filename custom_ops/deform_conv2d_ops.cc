// The ops `Tfcorr>DeformConv2D` and `Tfcorr>DeformConv2DGrad`: registration, shape functions, checks, memory and
// threads. The arithmetic is in kernels/deform_conv2d_kernel.inc.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "isa.h"
#include "kernels/deform_conv2d.h"
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

template <class... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Positions are float32, which counts whole pixels up to here.
constexpr int64_t kMaxSide = int64_t{1} << 24;

struct Attributes {
  std::vector<int64_t> strides, dilations, explicit_padding;
  std::string padding;
  int64_t groups = 1;
  bool free_grid = false, has_mask = true, has_bias = true;

  // Reads and checks the attributes; `Context` is an InferenceContext or an OpKernelConstruction.
  template <class Context>
  absl::Status Read(Context* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("strides", &strides));
    TF_RETURN_IF_ERROR(context->GetAttr("dilations", &dilations));
    TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
    TF_RETURN_IF_ERROR(context->GetAttr("explicit_padding", &explicit_padding));
    TF_RETURN_IF_ERROR(context->GetAttr("deform_groups", &groups));
    TF_RETURN_IF_ERROR(context->GetAttr("free_grid", &free_grid));
    TF_RETURN_IF_ERROR(context->GetAttr("has_mask", &has_mask));
    TF_RETURN_IF_ERROR(context->GetAttr("has_bias", &has_bias));
    TF_RETURN_IF_ERROR(CheckPair("strides", strides));
    TF_RETURN_IF_ERROR(CheckPair("dilations", dilations));
    const size_t sides = padding == "EXPLICIT" ? 4 : 0;
    if (explicit_padding.size() != sides) {
      return InvalidArgument("deform_conv2d expects explicit_padding (top, bottom, left, right) with padding ",
                             "EXPLICIT and no explicit_padding otherwise, got ", explicit_padding.size(),
                             " numbers with padding ", padding, ".");
    }
    for (const int64_t side : explicit_padding) {
      if (side < 0 || side > kMaxSide) {
        return InvalidArgument("deform_conv2d expects every explicit_padding in [0, ", kMaxSide, "], got ", side, ".");
      }
    }
    return absl::OkStatus();
  }

  static absl::Status CheckPair(const char* name, const std::vector<int64_t>& pair) {
    if (pair.size() == 2 && std::min(pair[0], pair[1]) >= 1 && std::max(pair[0], pair[1]) <= kMaxSide) {
      return absl::OkStatus();
    }
    std::string values;
    for (const int64_t value : pair) values += (values.empty() ? "" : ", ") + std::to_string(value);
    return InvalidArgument("deform_conv2d expects two ", name, " (y, x) in [1, ", kMaxSide, "], got (", values, ").");
  }

  // Zeros before the first and behind the last row (axis 0) or column (axis 1) of an input of the given size.
  void PaddingOf(int axis, int64_t size, int64_t kernel, int64_t* before, int64_t* behind) const {
    *before = *behind = 0;
    if (padding == "EXPLICIT") {
      *before = explicit_padding[2 * axis];
      *behind = explicit_padding[2 * axis + 1];
    } else if (padding == "SAME") {
      const int64_t extent = (kernel - 1) * dilations[axis] + 1;
      // A free grid has no input size to go by; it is padded as an input of (output size * stride) would be.
      const int64_t steps = (size + strides[axis] - 1) / strides[axis];
      const int64_t last = free_grid ? -strides[axis] : (steps - 1) * strides[axis] - size;
      const int64_t both = std::max<int64_t>(last + extent, 0);
      *before = both / 2;
      *behind = both - *before;
    }
  }

  // Output size along an axis; negative or zero if the kernel does not fit.
  int64_t OutputSize(int axis, int64_t size, int64_t kernel) const {
    int64_t before, behind;
    PaddingOf(axis, size, kernel, &before, &behind);
    const int64_t room = size + before + behind - ((kernel - 1) * dilations[axis] + 1);
    return room < 0 ? 0 : room / strides[axis] + 1;
  }
};

// ---------------------------------------------------------------------------------------------------------------
// Shape functions.

// Requires a known dimension to have the value that the others demand.
absl::Status Demand(InferenceContext* c, DimensionHandle dimension, int64_t value, const char* what) {
  if (c->ValueKnown(dimension) && c->Value(dimension) != value) {
    return InvalidArgument("deform_conv2d expects ", what, " = ", value, ", got ", c->Value(dimension), ": x ",
                           c->DebugString(c->input(0)), ", kernel ", c->DebugString(c->input(1)), ", offset ",
                           c->DebugString(c->input(2)), ", mask ", c->DebugString(c->input(3)), ", bias ",
                           c->DebugString(c->input(4)), ".");
  }
  return absl::OkStatus();
}

absl::Status OutputShape(InferenceContext* c, ShapeHandle* output) {
  Attributes attributes;
  TF_RETURN_IF_ERROR(attributes.Read(c));
  ShapeHandle x, kernel, offset, mask, bias;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 4, &offset));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), attributes.has_mask ? 4 : 1, &mask));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &bias));

  DimensionHandle batch, channels, outputs = c->Dim(kernel, 3);
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 0), c->Dim(offset, 0), &batch));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(kernel, 2), &channels));
  DimensionHandle size[2] = {c->Dim(offset, 1), c->Dim(offset, 2)};
  if (attributes.has_bias) TF_RETURN_IF_ERROR(c->Merge(outputs, c->Dim(bias, 0), &outputs));
  if (attributes.has_mask) {
    TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(mask, 0), &batch));
    for (int axis = 0; axis < 2; ++axis) {
      TF_RETURN_IF_ERROR(c->Merge(size[axis], c->Dim(mask, axis + 1), &size[axis]));
    }
  }
  if (c->ValueKnown(channels) && c->Value(channels) % attributes.groups != 0) {
    return InvalidArgument("deform_conv2d expects channels divisible by deform_groups = ", attributes.groups,
                           ", got x ", c->DebugString(x), ".");
  }
  if (c->ValueKnown(c->Dim(kernel, 0)) && c->ValueKnown(c->Dim(kernel, 1))) {
    const int64_t samples = attributes.groups * c->Value(c->Dim(kernel, 0)) * c->Value(c->Dim(kernel, 1));
    TF_RETURN_IF_ERROR(Demand(c, c->Dim(offset, 3), 2 * samples, "offset channels 2 * deform_groups * kh * kw"));
    if (attributes.has_mask) {
      TF_RETURN_IF_ERROR(Demand(c, c->Dim(mask, 3), samples, "mask channels deform_groups * kh * kw"));
    }
  }
  for (int axis = 0; axis < 2 && !attributes.free_grid; ++axis) {
    const DimensionHandle input = c->Dim(x, axis + 1), taps = c->Dim(kernel, axis);
    if (!c->ValueKnown(input) || !c->ValueKnown(taps)) continue;
    const int64_t wanted = attributes.OutputSize(axis, c->Value(input), c->Value(taps));
    TF_RETURN_IF_ERROR(Demand(c, size[axis], wanted, axis == 0 ? "offset height" : "offset width"));
    size[axis] = c->MakeDim(wanted);
  }
  *output = c->MakeShape({batch, size[0], size[1], outputs});
  return absl::OkStatus();
}

absl::Status ForwardShape(InferenceContext* c) {
  ShapeHandle output;
  TF_RETURN_IF_ERROR(OutputShape(c, &output));
  c->set_output(0, output);
  return absl::OkStatus();
}

absl::Status BackwardShape(InferenceContext* c) {
  ShapeHandle output, gradient;
  TF_RETURN_IF_ERROR(OutputShape(c, &output));
  TF_RETURN_IF_ERROR(c->Merge(c->input(5), output, &gradient));
  for (int i = 0; i < 5; ++i) c->set_output(i, c->input(i));
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------------------------
// Kernels.

// The kernels for this processor; TFCORR_ISA names lesser ones, for tests.
const DeformKernels& SelectKernels() {
#if defined(__x86_64__)
  switch (SelectIsa()) {
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

class DeformOp : public OpKernel {
 public:
  explicit DeformOp(OpKernelConstruction* context) : OpKernel(context), kernels_(SelectKernels()) {
    OP_REQUIRES_OK(context, attributes_.Read(context));
    tensorflow::DataType type;
    OP_REQUIRES_OK(context, context->GetAttr("T", &type));
    type_ = type == tensorflow::DT_FLOAT ? kDeformFloat : kDeformBfloat16;
  }

 protected:
  // Checks the five inputs and fills in the sizes.
  absl::Status ReadShape(OpKernelContext* context, DeformShape* shape) const {
    const TensorShape &x = context->input(0).shape(), &kernel = context->input(1).shape(),
                      &offset = context->input(2).shape(), &mask = context->input(3).shape(),
                      &bias = context->input(4).shape();
    const auto refuse = [&](const std::string& expected) {
      return InvalidArgument("deform_conv2d expects ", expected, "; got x ", x.DebugString(), ", kernel ",
                             kernel.DebugString(), ", offset ", offset.DebugString(), ", mask ",
                             attributes_.has_mask ? mask.DebugString() : "none", ", bias ",
                             attributes_.has_bias ? bias.DebugString() : "none", ", deform_groups ",
                             attributes_.groups, ".");
    };
    if (x.dims() != 4) return refuse("x (batch, height, width, channels)");
    if (kernel.dims() != 4) return refuse("kernel (height, width, channels, outputs)");
    if (offset.dims() != 4) return refuse("offset (batch, out height, out width, deform_groups * kh * kw * 2)");
    shape->batch = x.dim_size(0);
    shape->height = x.dim_size(1);
    shape->width = x.dim_size(2);
    shape->channels = x.dim_size(3);
    shape->out_height = offset.dim_size(1);
    shape->out_width = offset.dim_size(2);
    shape->kernel_height = kernel.dim_size(0);
    shape->kernel_width = kernel.dim_size(1);
    shape->out_channels = kernel.dim_size(3);
    shape->groups = attributes_.groups;
    shape->stride_y = attributes_.strides[0];
    shape->stride_x = attributes_.strides[1];
    shape->dilation_y = attributes_.dilations[0];
    shape->dilation_x = attributes_.dilations[1];
    if (kernel.dim_size(2) != shape->channels) return refuse("a kernel for the channels of x");
    if (shape->kernel_height < 1 || shape->kernel_width < 1) return refuse("a kernel of at least one tap");
    if (shape->channels < 1) return refuse("at least one channel");
    if (shape->channels % shape->groups != 0) return refuse("channels divisible by deform_groups");
    if (offset.dim_size(0) != shape->batch) return refuse("the same batch in x and offset");
    const int64_t samples = shape->groups * shape->kernel_height * shape->kernel_width;
    if (offset.dim_size(3) != 2 * samples) return refuse("2 * deform_groups * kh * kw offset channels");
    if (attributes_.has_mask && mask != TensorShape({shape->batch, shape->out_height, shape->out_width, samples})) {
      return refuse("a mask (batch, out height, out width, deform_groups * kh * kw) on the grid of offset");
    }
    if (attributes_.has_bias && bias != TensorShape({shape->out_channels})) {
      return refuse("a bias for the outputs of the kernel");
    }
    for (const int64_t side : {shape->height, shape->width, shape->out_height * shape->stride_y,
                               shape->out_width * shape->stride_x, shape->kernel_height * shape->dilation_y,
                               shape->kernel_width * shape->dilation_x}) {
      if (side > kMaxSide) return refuse("sides of at most 16777216 pixels, which float32 positions can count");
    }
    int64_t behind;
    attributes_.PaddingOf(0, shape->height, shape->kernel_height, &shape->pad_top, &behind);
    attributes_.PaddingOf(1, shape->width, shape->kernel_width, &shape->pad_left, &behind);
    if (!attributes_.free_grid) {
      const int64_t height = attributes_.OutputSize(0, shape->height, shape->kernel_height);
      const int64_t width = attributes_.OutputSize(1, shape->width, shape->kernel_width);
      if (shape->out_height != height || shape->out_width != width) {
        return refuse("offset on the output's grid of " + std::to_string(height) + " x " + std::to_string(width) +
                      " (or a free grid, by output_size)");
      }
    }
    return absl::OkStatus();
  }

  static absl::Status Floats(OpKernelContext* context, int64_t count, Tensor* tensor) {
    return context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({count}), tensor);
  }

  static float* data(Tensor& tensor) { return tensor.flat<float>().data(); }
  static const void* data(const Tensor& tensor) { return tensor.data(); }
  static const float* offsets(OpKernelContext* context) { return context->input(2).flat<float>().data(); }
  const void* mask(OpKernelContext* context) const {
    return attributes_.has_mask ? context->input(3).data() : nullptr;
  }

  static int64_t threads(OpKernelContext* context) {
    return context->device()->tensorflow_cpu_worker_threads()->num_threads;
  }

  // Runs work(begin, end) on blocks that cover [0, count), on TensorFlow's CPU pool and this thread.
  template <class Work>
  static void InBlocks(OpKernelContext* context, int64_t count, int64_t block, const Work& work) {
    using tensorflow::thread::ThreadPool;
    ThreadPool* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
    pool->ParallelFor(count, ThreadPool::SchedulingParams::Fixed(block), work);
  }

  // Runs work(scratch, i) for i in [0, count). Each worker has its own `size` floats of scratch and takes the next i
  // when it is done with one, so that no thread waits for a slower one.
  template <class Work>
  static absl::Status WithScratch(OpKernelContext* context, int64_t count, int64_t size, const Work& work) {
    const int64_t workers = std::min(threads(context), count);
    // Own cache lines, and own pages, for every worker.
    size = (size + 1023) / 1024 * 1024;
    Tensor scratch;
    TF_RETURN_IF_ERROR(Floats(context, workers * size, &scratch));
    float* const memory = data(scratch);
    std::atomic<int64_t> next{0};
    InBlocks(context, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t i = next++; i < count; i = next++) work(memory + worker * size, i);
      }
    });
    return absl::OkStatus();
  }

  // x, repacked with a border of zeros.
  absl::Status PackImage(OpKernelContext* context, const DeformShape& shape, const DeformLayout& layout,
                         Tensor* image) const {
    TF_RETURN_IF_ERROR(Floats(context, layout.image_size, image));
    const void* x = context->input(0).data();
    InBlocks(context, layout.image_rows, 8, [&](int64_t begin, int64_t end) {
      kernels_.pack_image(shape, layout, type_, x, data(*image), begin, end);
    });
    return absl::OkStatus();
  }

  const DeformKernels& kernels_;
  Attributes attributes_;
  DeformType type_;
};

class DeformConv2DOp : public DeformOp {
 public:
  using DeformOp::DeformOp;

  void Compute(OpKernelContext* context) override {
    DeformForward task;
    OP_REQUIRES_OK(context, ReadShape(context, &task.shape));
    const DeformShape& shape = task.shape;
    Tensor* output;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({shape.batch, shape.out_height, shape.out_width, shape.out_channels}), &output));
    if (output->NumElements() == 0) return;

    kernels_.layout(shape, threads(context), &task.layout);
    Tensor image, packed_kernel;
    OP_REQUIRES_OK(context, PackImage(context, shape, task.layout, &image));
    OP_REQUIRES_OK(context, Floats(context, task.layout.packed_kernel_size, &packed_kernel));
    const void* kernel = context->input(1).data();
    InBlocks(context, task.layout.chunks, 1, [&](int64_t begin, int64_t end) {
      kernels_.pack_kernel(shape, task.layout, type_, kernel, data(packed_kernel), begin, end);
    });

    task.type = type_;
    task.image = data(image);
    task.packed_kernel = data(packed_kernel);
    task.offset = offsets(context);
    task.mask = mask(context);
    task.bias = attributes_.has_bias ? context->input(4).data() : nullptr;
    task.output = output->data();
    OP_REQUIRES_OK(context, WithScratch(context, shape.batch * task.layout.tiles_per_image,
                                        task.layout.forward_scratch, [&](float* scratch, int64_t tile) {
                                          kernels_.forward(task, scratch, tile, tile + 1);
                                        }));
  }
};

class DeformConv2DGradOp : public DeformOp {
 public:
  using DeformOp::DeformOp;

  void Compute(OpKernelContext* context) override {
    DeformBackward task;
    OP_REQUIRES_OK(context, ReadShape(context, &task.shape));
    const DeformShape& shape = task.shape;
    const Tensor& output_gradient = context->input(5);
    const TensorShape output_shape({shape.batch, shape.out_height, shape.out_width, shape.out_channels});
    OP_REQUIRES(context, output_gradient.shape() == output_shape,
                InvalidArgument("deform_conv2d expects an output gradient of shape ", output_shape.DebugString(),
                                ", got ", output_gradient.shape().DebugString(), "."));
    Tensor* gradients[5];
    for (int i = 0; i < 5; ++i) {
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &gradients[i]));
    }
    kernels_.layout(shape, threads(context), &task.layout);
    const DeformLayout& layout = task.layout;
    task.type = type_;
    task.kernel = context->input(1).data();
    task.offset = offsets(context);
    task.mask = mask(context);
    task.output_gradient = output_gradient.data();
    task.offset_gradient = gradients[2]->flat<float>().data();
    task.mask_gradient = gradients[3]->data();

    Tensor image, image_gradient, kernel_gradient, samples;
    OP_REQUIRES_OK(context, PackImage(context, shape, layout, &image));
    OP_REQUIRES_OK(context, Zeros(context, layout.image_size, &image_gradient));
    OP_REQUIRES_OK(context, Zeros(context, layout.kernel_gradient_size, &kernel_gradient));
    const int64_t parts = layout.parts > 1 ? layout.parts : 0;
    OP_REQUIRES_OK(context, Floats(context, parts * layout.sample_gradient_size, &samples));
    task.image = data(image);
    task.image_gradient = data(image_gradient);
    task.kernel_gradient = data(kernel_gradient);
    task.sample_gradients = data(samples);

    OP_REQUIRES_OK(context, WithScratch(context, layout.units, layout.backward_scratch,
                                        [&](float* scratch, int64_t unit) {
                                          kernels_.backward(task, scratch, unit, unit + 1);
                                        }));

    void* x_gradient = gradients[0]->data();
    InBlocks(context, layout.image_rows, 8, [&](int64_t begin, int64_t end) {
      kernels_.unpack_image(shape, layout, type_, task.image_gradient, x_gradient, begin, end);
    });
    InBlocks(context, shape.kernel_height * shape.kernel_width, 1, [&](int64_t begin, int64_t end) {
      kernels_.unpack_kernel(task, gradients[1]->data(), begin, end);
    });
    const int64_t pixels = shape.batch * shape.out_height * shape.out_width;
    if (parts > 0) {
      InBlocks(context, pixels, 256,
               [&](int64_t begin, int64_t end) { kernels_.reduce_samples(task, begin, end); });
    }
    OP_REQUIRES_OK(context, BiasGradient(context, task, pixels, gradients[4]));
  }

 private:
  static absl::Status Zeros(OpKernelContext* context, int64_t count, Tensor* tensor) {
    TF_RETURN_IF_ERROR(Floats(context, count, tensor));
    float* const memory = data(*tensor);
    InBlocks(context, count, int64_t{1} << 16,
             [memory](int64_t begin, int64_t end) { std::fill(memory + begin, memory + end, 0.0f); });
    return absl::OkStatus();
  }

  // Sums in blocks of a fixed size, then the blocks in order: the same for any number of threads.
  absl::Status BiasGradient(OpKernelContext* context, const DeformBackward& task, int64_t pixels,
                            Tensor* gradient) const {
    if (!attributes_.has_bias) return absl::OkStatus();
    constexpr int64_t kBlock = 1024;
    const int64_t outputs = task.shape.out_channels;
    const int64_t blocks = (pixels + kBlock - 1) / kBlock;
    Tensor partial;
    TF_RETURN_IF_ERROR(Floats(context, blocks * outputs, &partial));
    float* const sums = data(partial);
    InBlocks(context, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        kernels_.sum_pixels(task, block * kBlock, std::min(pixels, (block + 1) * kBlock), sums + block * outputs);
      }
    });
    for (int64_t o = 0; o < outputs; ++o) {
      float sum = 0.0f;
      for (int64_t block = 0; block < blocks; ++block) sum += sums[block * outputs + o];
      if (type_ == kDeformFloat) {
        gradient->flat<float>()(o) = sum;
      } else {
        gradient->flat<tensorflow::bfloat16>()(o) = static_cast<tensorflow::bfloat16>(sum);
      }
    }
    return absl::OkStatus();
  }
};

#define TFCORR_DEFORM_ATTRIBUTES                     \
  Attr("T: {float, bfloat16}")                       \
      .Attr("strides: list(int) = [1, 1]")           \
      .Attr("dilations: list(int) = [1, 1]")         \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'} = 'SAME'") \
      .Attr("explicit_padding: list(int) = []")      \
      .Attr("deform_groups: int >= 1 = 1")           \
      .Attr("free_grid: bool = false")               \
      .Attr("has_mask: bool = true")                 \
      .Attr("has_bias: bool = true")

REGISTER_OP("Tfcorr>DeformConv2D")
    .Input("x: T")
    .Input("kernel: T")
    .Input("offset: float")
    .Input("mask: T")
    .Input("bias: T")
    .Output("output: T")
    .TFCORR_DEFORM_ATTRIBUTES.SetShapeFn(ForwardShape)
    .Doc(R"doc(
Modulated deformable convolution: every tap of the kernel reads x bilinearly at a place of its own.

x: (batch, height, width, channels).
kernel: (kh, kw, channels, outputs).
offset: (batch, out height, out width, deform_groups * kh * kw * 2), last axis (group, ky, kx, [dy, dx]), in pixels.
mask: (batch, out height, out width, deform_groups * kh * kw), a factor of each sample; empty without has_mask.
bias: (outputs); empty without has_bias.
output: (batch, out height, out width, outputs).
strides: along y and x.
dilations: along y and x.
explicit_padding: top, bottom, left, right, with padding EXPLICIT.
free_grid: the output has the size of offset, whatever the size of x.
)doc");

REGISTER_OP("Tfcorr>DeformConv2DGrad")
    .Input("x: T")
    .Input("kernel: T")
    .Input("offset: float")
    .Input("mask: T")
    .Input("bias: T")
    .Input("output_gradient: T")
    .Output("x_gradient: T")
    .Output("kernel_gradient: T")
    .Output("offset_gradient: float")
    .Output("mask_gradient: T")
    .Output("bias_gradient: T")
    .TFCORR_DEFORM_ATTRIBUTES.SetShapeFn(BackwardShape)
    .Doc(R"doc(
Gradients of Tfcorr>DeformConv2D for all of its inputs.
)doc");

REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2D").Device(tensorflow::DEVICE_CPU), DeformConv2DOp);
REGISTER_KERNEL_BUILDER(Name("Tfcorr>DeformConv2DGrad").Device(tensorflow::DEVICE_CPU), DeformConv2DGradOp);

}  // namespace
}  // namespace tfcorr
