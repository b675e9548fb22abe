"""Both implementations of deform_conv2d against goldens, a float64 loop, finite differences, tf.nn.conv2d."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import DEFORM_CASES, GOLDENS, hwio, load_golden, nhwc

from tfcorr.errors import TfcorrError
from tfcorr.ops import deform_conv2d, deform_conv_portable, library

NAMES = ("x", "kernel", "offset", "mask", "bias")
ROOT = Path(__file__).parents[2]

needs_op = pytest.mark.skipif(library.load() is None, reason=library.status().reason)


@pytest.fixture(params=[pytest.param("custom", marks=needs_op), "reference"])
def implementation(request):
    return request.param


def brute_force(
    x, kernel, offset, mask, bias, *, strides=(1, 1), pad=(0, 0), dilation_rate=(1, 1), deform_groups=1
):
    """The definition as a loop, in float64. `pad` is (top, left); the grid is that of `offset`."""
    x, kernel, offset = (np.asarray(a, np.float64) for a in (x, kernel, offset))
    _, height, width, channels = x.shape
    kh, kw, _, outputs = kernel.shape
    out = np.zeros((*offset.shape[:3], outputs)) + (0.0 if bias is None else np.asarray(bias, np.float64))
    shifts = offset.reshape(*offset.shape[:3], deform_groups, kh, kw, 2)
    factors = None if mask is None else np.asarray(mask, np.float64).reshape(shifts.shape[:-1])
    wide = channels // deform_groups

    def pixel(b, y, x_, part):
        return x[b, y, x_, part] if 0 <= y < height and 0 <= x_ < width else np.zeros(wide)

    for b, oy, ox, g, ky, kx in np.ndindex(*shifts.shape[:-1]):
        y = oy * strides[0] - pad[0] + ky * dilation_rate[0] + shifts[b, oy, ox, g, ky, kx, 0]
        x_ = ox * strides[1] - pad[1] + kx * dilation_rate[1] + shifts[b, oy, ox, g, ky, kx, 1]
        if not (-1 < y < height and -1 < x_ < width):
            continue
        part = slice(g * wide, (g + 1) * wide)
        y0, x0 = math.floor(y), math.floor(x_)
        ly, lx = y - y0, x_ - x0
        value = (
            (1 - ly) * (1 - lx) * pixel(b, y0, x0, part)
            + (1 - ly) * lx * pixel(b, y0, x0 + 1, part)
            + ly * (1 - lx) * pixel(b, y0 + 1, x0, part)
            + ly * lx * pixel(b, y0 + 1, x0 + 1, part)
        )
        if factors is not None:
            value = value * factors[b, oy, ox, g, ky, kx]
        out[b, oy, ox] += value @ kernel[ky, kx, part]
    return out


def problem(seed, size, grid, channels, outputs, taps=(3, 3), groups=1, batch=1, reach=1.5):
    """Random x, kernel, offset, mask, bias in float32."""
    random = np.random.default_rng(seed)
    samples = groups * taps[0] * taps[1]
    return [
        array.astype(np.float32)
        for array in (
            random.normal(size=(batch, *size, channels)),
            random.normal(size=(*taps, channels, outputs)) / math.sqrt(taps[0] * taps[1] * channels),
            random.normal(size=(batch, *grid, samples * 2)) * reach,
            random.uniform(size=(batch, *grid, samples)),
            random.normal(size=outputs),
        )
    ]


def gradients(arguments, output_gradient, **options):
    """Output, and the gradients of sum(output * output_gradient) for every argument that is there."""
    tensors = [None if a is None else tf.convert_to_tensor(a) for a in arguments]
    present = [t for t in tensors if t is not None]
    with tf.GradientTape() as tape:
        tape.watch(present)
        output = deform_conv2d(*tensors, **options)
        loss = tf.reduce_sum(tf.cast(output, tf.float32) * tf.cast(output_gradient, tf.float32))
    found = iter(tape.gradient(loss, present, unconnected_gradients="zero"))
    return output, [None if t is None else next(found).numpy() for t in tensors]


def check_golden(case, implementation):
    z = load_golden("deform_conv", case)
    stride, padding, dilation, groups = (int(value) for value in z["config"])
    output, found = gradients(
        [nhwc(z["x"]), hwio(z["weight"]), nhwc(z["offset"]), nhwc(z["mask"]), z["bias"]],
        nhwc(z["grad_out"]),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        dilation_rate=dilation,
        deform_groups=groups,
        implementation=implementation,
    )
    np.testing.assert_allclose(output, nhwc(z["out"]), rtol=1e-4, atol=2e-5)
    wanted = [nhwc(z["d_x"]), hwio(z["d_weight"]), nhwc(z["d_offset"]), nhwc(z["d_mask"]), z["d_bias"]]
    for name, have, want in zip(NAMES, found, wanted, strict=True):
        atol = 1e-4 if name in ("kernel", "bias") else 2e-5
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=atol, err_msg=f"{case}: {name}")


@pytest.mark.parametrize("case", DEFORM_CASES)
def test_golden(case, implementation):
    check_golden(case, implementation)


@pytest.mark.parametrize("case", ["basic", "border", "stride2_pad0"])
def test_golden_in_many_tiles(case, monkeypatch):
    """The portable implementation cuts nothing this small, unless it is told to."""
    monkeypatch.setattr(deform_conv_portable, "_TILE_SIZE", 300)
    check_golden(case, "reference")


# Channels a group of 1, 3, 4, 5, 8, 12, 16, 24, 40: every vector length with and without filling up; outputs
# around the widths of the matrix product's panels; more pixels than a tile has.
@pytest.mark.parametrize(
    "channels, groups, outputs, taps, size",
    [
        (1, 1, 1, (1, 1), (1, 1)),
        (6, 2, 3, (3, 3), (5, 7)),
        (8, 2, 17, (3, 3), (17, 16)),
        (5, 1, 33, (2, 3), (6, 5)),
        (64, 8, 8, (3, 3), (5, 4)),
        (24, 2, 7, (3, 1), (7, 3)),
        (32, 2, 16, (3, 3), (4, 5)),
        (24, 1, 5, (3, 3), (4, 4)),
        (40, 1, 4, (5, 5), (4, 3)),
        (28, 7, 9, (3, 3), (4, 5)),
    ],
)
def test_brute_force(implementation, channels, groups, outputs, taps, size):
    arguments = problem(1, size, size, channels, outputs, taps, groups, batch=2)
    output = deform_conv2d(*arguments, deform_groups=groups, implementation=implementation)
    pad = ((taps[0] - 1) // 2, (taps[1] - 1) // 2)
    np.testing.assert_allclose(
        output, brute_force(*arguments, pad=pad, deform_groups=groups), rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_without_mask_or_bias(implementation, has_mask, has_bias):
    arguments = problem(2, (6, 5), (6, 5), 4, 3, groups=2)
    arguments[3] = arguments[3] if has_mask else None
    arguments[4] = arguments[4] if has_bias else None
    output, found = gradients(
        arguments, np.ones((1, 6, 5, 3), "float32"), deform_groups=2, implementation=implementation
    )
    want = brute_force(*arguments, pad=(1, 1), deform_groups=2)
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=2e-5)
    if not has_mask:
        arguments[3] = np.ones((1, 6, 5, 18), "float32")
        _, same = gradients(
            arguments, np.ones((1, 6, 5, 3), "float32"), deform_groups=2, implementation=implementation
        )
        for have, want in zip(found[:3], same[:3], strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-5)


def central_differences(arguments, output_gradient, which, step, options):
    """Derivative of sum(output * output_gradient) for every entry of one argument, from the float64 loop."""
    array = arguments[which].astype(np.float64)
    result = np.zeros_like(array)
    for place in np.ndindex(*array.shape):
        values = []
        for sign in (1, -1):
            moved = array.copy()
            moved[place] += sign * step
            changed = [moved if i == which else a for i, a in enumerate(arguments)]
            values.append((brute_force(*changed, **options) * output_gradient).sum())
        result[place] = (values[0] - values[1]) / (2 * step)
    return result


@pytest.mark.parametrize("groups, channels, reach, seed", [(1, 3, 1.0, 3), (2, 4, 6.0, 4), (8, 8, 2.0, 6)])
def test_finite_differences(implementation, groups, channels, reach, seed):
    """On a map so small that many samples lie on the border's cells or far outside."""
    taps = (2, 2) if groups < 8 else (1, 2)
    arguments = problem(seed, (3, 2), (2, 3), channels, 2, taps, groups, reach=reach)
    # The function has kinks at whole numbers: keep away from them by more than the step.
    offset = arguments[2]
    fraction = offset - np.floor(offset)
    arguments[2] = (np.floor(offset) + np.clip(fraction, 0.05, 0.95)).astype("float32")
    output_gradient = np.random.default_rng(7).normal(size=(1, 2, 3, 2)).astype("float32")
    _, found = gradients(
        arguments,
        output_gradient,
        padding=((1, 0), (1, 0)),
        deform_groups=groups,
        output_size=(2, 3),
        implementation=implementation,
    )
    options = {"pad": (1, 1), "deform_groups": groups}
    for which, name in enumerate(NAMES):
        want = central_differences(arguments, output_gradient, which, 1e-3, options)
        np.testing.assert_allclose(found[which], want, rtol=1e-3, atol=1e-4, err_msg=name)


def test_free_grid(implementation):
    """x has its own size, which changes nothing about where the grid lies."""
    arguments = problem(8, (7, 9), (3, 4), 4, 3, batch=2, reach=4.0)
    for padding, pad in (("same", (1, 1)), ("valid", (0, 0)), (((2, 0), (0, 1)), (2, 0))):
        output = deform_conv2d(*arguments, padding=padding, output_size=(3, 4), implementation=implementation)
        np.testing.assert_allclose(output, brute_force(*arguments, pad=pad), rtol=1e-4, atol=2e-5)


def same_padding(size, strides, rates):
    """TensorFlow's rule for a kernel of 3 x 3."""
    both = [
        max((-(-n // stride) - 1) * stride + 2 * rate + 1 - n, 0)
        for n, stride, rate in zip(size, strides, rates, strict=True)
    ]
    return tuple((total // 2, total - total // 2) for total in both)


@pytest.mark.parametrize("padding", ["same", "valid", ((2, 1), (0, 3))])
@pytest.mark.parametrize("strides, dilation", [(1, 1), (2, 1), ((1, 3), (2, 1)), (1, 2)])
@pytest.mark.parametrize("size", [(9, 8), (8, 11)])
def test_zero_offsets_are_a_convolution(implementation, padding, strides, dilation, size):
    x, kernel, _, _, bias = problem(9, size, (1, 1), 6, 5)
    pair = (strides, strides) if isinstance(strides, int) else strides
    rates = (dilation, dilation) if isinstance(dilation, int) else dilation
    if isinstance(padding, str) and 1 in (max(pair), max(rates)):
        want = tf.nn.conv2d(x, kernel, pair, padding.upper(), dilations=rates) + bias
    else:
        # TensorFlow takes strides together with neither dilation nor explicit padding here: pad first, and
        # leave pixels out afterwards.
        sides = {"valid": ((0, 0), (0, 0)), "same": same_padding(size, pair, rates)}.get(padding, padding)
        padded = np.pad(x, ((0, 0), *sides, (0, 0)))
        want = tf.nn.conv2d(padded, kernel, 1, "VALID", dilations=rates)[:, :: pair[0], :: pair[1]] + bias
    offset = np.zeros((*want.shape[:3], 18), "float32")
    have = deform_conv2d(
        x,
        kernel,
        offset,
        None,
        bias,
        strides=strides,
        padding=padding,
        dilation_rate=dilation,
        implementation=implementation,
    )
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (13, 17)])
def test_batches(implementation, batch, size):
    arguments = problem(10, size, size, 8, 4, groups=4, batch=batch)
    output, found = gradients(
        arguments, np.ones((batch, *size, 4), "float32"), deform_groups=4, implementation=implementation
    )
    assert output.shape == (batch, *size, 4)
    want = brute_force(*arguments, pad=(1, 1), deform_groups=4)
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=2e-5)
    for have, argument in zip(found, arguments, strict=True):
        assert have.shape == argument.shape
        assert np.isfinite(have).all()
    np.testing.assert_allclose(found[4], np.full(4, batch * size[0] * size[1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e9, -1e30])
def test_offsets_without_a_place(implementation, bad):
    """Such a sample counts nothing, also where x is infinite, and lets no gradient through."""
    x, kernel, offset, mask, bias = problem(11, (4, 5), (4, 5), 4, 3, groups=2)
    finite = x.copy()
    x[0, 0, 0] = np.inf
    offset[...] = 10.0
    offset[0, 1, 2, ::2] = bad
    offset[0, 2, 3, 1::2] = bad
    output, found = gradients(
        [x, kernel, offset, mask, bias],
        np.ones((1, 4, 5, 3), "float32"),
        deform_groups=2,
        implementation=implementation,
    )
    np.testing.assert_array_equal(output, np.broadcast_to(bias, output.shape))
    for have in found[:4]:
        np.testing.assert_array_equal(have, np.zeros_like(have))
    # The other samples are not touched by it.
    offset[...] = 0.3
    offset[0, 1, 2, ::2] = bad
    output = deform_conv2d(finite, kernel, offset, mask, bias, deform_groups=2, implementation=implementation)
    want = brute_force(finite, kernel, offset, mask, bias, pad=(1, 1), deform_groups=2)
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=2e-5)


def test_bfloat16(implementation):
    """The output is the rounded float32 result of the rounded inputs; the gradients likewise.

    Some processors' products round the samples as well: `test_products_of_bfloat16`.
    """
    arguments = problem(12, (9, 7), (9, 7), 16, 6, groups=2)
    rounded = [tf.cast(a, tf.bfloat16) if i != 2 else tf.constant(a) for i, a in enumerate(arguments)]
    output_gradient = tf.cast(np.random.default_rng(13).normal(size=(1, 9, 7, 6)), tf.bfloat16)
    options = {"deform_groups": 2, "implementation": implementation}
    output, found = gradients(rounded, output_gradient, **options)
    assert output.dtype == tf.bfloat16
    exact_output, exact = gradients([tf.cast(a, tf.float32) for a in rounded], output_gradient, **options)
    rounds_samples = implementation == "custom" and library.instruction_set() in ("avx512bf16", "amx")
    atol = 2**-8 * np.abs(exact_output).max() if rounds_samples else 1e-6
    np.testing.assert_allclose(tf.cast(output, tf.float32), exact_output, rtol=2**-8, atol=atol)
    for name, have, want in zip(NAMES, found, exact, strict=True):
        assert have.dtype == (np.float32 if name == "offset" else tf.bfloat16.as_numpy_dtype)
        # Gradients flow through more than one rounding in the portable implementation.
        np.testing.assert_allclose(
            have.astype("float32"), want, rtol=2**-7, atol=2**-7 * np.abs(want).max(), err_msg=name
        )


@needs_op
def test_gradients_are_reproducible():
    arguments = problem(14, (23, 31), (23, 31), 32, 8, groups=4, batch=2)
    output_gradient = np.random.default_rng(15).normal(size=(2, 23, 31, 8)).astype("float32")
    first = gradients(arguments, output_gradient, deform_groups=4, implementation="custom")
    for _ in range(3):
        again = gradients(arguments, output_gradient, deform_groups=4, implementation="custom")
        np.testing.assert_array_equal(first[0], again[0])
        for a, b in zip(first[1], again[1], strict=True):
            np.testing.assert_array_equal(a, b)


def test_implementations_agree_on_many_parts():
    """One group of many channels is cut into parts, each with its share of the offsets' gradients."""
    if library.load() is None:
        pytest.skip(library.status().reason)
    arguments = problem(16, (9, 8), (9, 8), 200, 20, batch=2)
    output_gradient = np.random.default_rng(17).normal(size=(2, 9, 8, 20)).astype("float32")
    for bfloat16 in (False, True):
        if bfloat16:
            arguments = [tf.cast(a, tf.bfloat16) if i != 2 else a for i, a in enumerate(arguments)]
        output, found = gradients(arguments, output_gradient, implementation="custom")
        same_output, same = gradients(arguments, output_gradient, implementation="reference")
        tolerance = 2**-6 if bfloat16 else 1e-5
        for name, have, want in zip(("output", *NAMES), (output, *found), (same_output, *same), strict=True):
            have, want = (np.asarray(a).astype("float32") for a in (have, want))
            np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("strides, padding", [(1, "valid"), (2, "same")])
def test_unknown_sizes_in_a_graph(implementation, strides, padding):
    arguments = problem(18, (9, 12), (1, 1), 4, 3)
    grid = tf.nn.conv2d(arguments[0], arguments[1], strides, padding.upper()).shape[1:3]
    arguments[2:4] = problem(19, (1, 1), grid, 4, 3)[2:4]

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, None, 4)),
            tf.TensorSpec((None, None, None, 18)),
            tf.TensorSpec((None, None, None, 9)),
        ]
    )
    def both(x, offset, mask):
        with tf.GradientTape() as tape:
            tape.watch([x, offset, mask])
            output = deform_conv2d(
                x,
                arguments[1],
                offset,
                mask,
                arguments[4],
                strides=strides,
                padding=padding,
                implementation=implementation,
            )
        assert output.shape.as_list() == [None, None, None, 3]
        return output, tape.gradient(output, [x, offset, mask])

    options = {"strides": strides, "padding": padding, "implementation": implementation}
    for batch in (1, 0):
        x, offset, mask = (arguments[i][:batch] for i in (0, 2, 3))
        output, found = both(x, offset, mask)
        want, wanted = gradients(
            [x, arguments[1], offset, mask, arguments[4]], tf.ones_like(output), **options
        )
        np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-6)
        for have, which in zip(found, (0, 2, 3), strict=True):
            np.testing.assert_allclose(have, wanted[which], rtol=1e-4, atol=1e-5)


@needs_op
def test_static_shape():
    """The op's shape function: what x, kernel and strides give, merged with what the offsets say."""
    kernel = np.zeros((3, 3, 4, 5), "float32")

    @tf.function
    def convolve(x, offset):
        return deform_conv2d(x, kernel, offset, strides=2, implementation="custom")

    spec = [tf.TensorSpec((None, 9, None, 4)), tf.TensorSpec((2, None, None, 18))]
    assert convolve.get_concrete_function(*spec).output_shapes.as_list() == [2, 5, None, 5]


def test_saved_model(tmp_path, implementation):
    """With a gradient that still works after loading."""
    x, kernel, offset, mask, bias = problem(20, (5, 6), (5, 6), 4, 3)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 4))])
        def __call__(self, x):
            return deform_conv2d(x, kernel, offset, mask, bias, implementation=implementation)

    tf.saved_model.save(Module(), tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        output = loaded(variable)
    want, wanted = gradients(
        [x, kernel, offset, mask, bias], np.ones((1, 5, 6, 3), "float32"), implementation=implementation
    )
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(output, variable), wanted[0], rtol=1e-4, atol=1e-5)


def test_tflite_with_unknown_size(monkeypatch):
    """The portable implementation converts with built-in operators only, tiles included."""
    monkeypatch.setattr(deform_conv_portable, "_TILE_SIZE", 2000)
    _, kernel, _, _, bias = problem(21, (1, 1), (1, 1), 8, 5, groups=2)

    @tf.function(
        input_signature=[
            tf.TensorSpec((1, None, None, 8)),
            tf.TensorSpec((1, None, None, 36)),
            tf.TensorSpec((1, None, None, 18)),
        ]
    )
    def convolve(x, offset, mask):
        return deform_conv2d(x, kernel, offset, mask, bias, deform_groups=2, implementation="reference")

    converter = tf.lite.TFLiteConverter.from_concrete_functions([convolve.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    model = converter.convert()
    for size in ((9, 11), (5, 2)):
        x, _, offset, mask, _ = problem(22, size, size, 8, 5, groups=2)
        by_width = {array.shape[-1]: array for array in (x, offset, mask)}
        interpreter = tf.lite.Interpreter(model_content=model)
        inputs = interpreter.get_input_details()
        for entry in inputs:
            interpreter.resize_tensor_input(entry["index"], by_width[entry["shape_signature"][-1]].shape)
        interpreter.allocate_tensors()
        for entry in inputs:
            interpreter.set_tensor(entry["index"], by_width[entry["shape_signature"][-1]])
        interpreter.invoke()
        have = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        want = brute_force(x, kernel, offset, mask, bias, pad=(1, 1), deform_groups=2)
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-5)


RUN_GOLDENS = f"""
import sys
import numpy as np
from tfcorr.ops import deform_conv2d, implementations
with np.load({str(GOLDENS / "deform_conv.npz")!r}) as goldens:
    for case in sys.argv[1:]:
        names = ("x", "weight", "offset", "mask", "bias", "out", "config")
        z = {{name: goldens[case + "/" + name] for name in names}}
        stride, pad, dilation, groups = (int(v) for v in z["config"])
        nhwc = lambda name: np.ascontiguousarray(np.moveaxis(z[name], 1, -1))
        kernel = np.ascontiguousarray(z["weight"].transpose(2, 3, 1, 0))
        output = deform_conv2d(nhwc("x"), kernel, nhwc("offset"), nhwc("mask"), z["bias"], strides=stride,
                               padding=((pad, pad), (pad, pad)), dilation_rate=dilation, deform_groups=groups)
        np.testing.assert_allclose(np.asarray(output), nhwc("out"), rtol=1e-4, atol=2e-5, err_msg=case)
print(implementations()["deform_conv2d"]["implementation"], "tensorflow" in sys.modules)
"""


def run_python(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_golden_on_another_backend(backend):
    # Keras' NumPy backend stands on JAX, too.
    pytest.importorskip("jax")
    # JAX compiles every case's operations anew, which takes its time.
    cases = DEFORM_CASES if backend == "numpy" else ("basic", "stride2_pad0")
    assert run_python(RUN_GOLDENS, *cases, KERAS_BACKEND=backend) == "reference False"


# The kernels of lesser processors: outputs and all gradients, as test_golden checks them.
RUN_KERNELS = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
from test_deform_conv import DEFORM_CASES, check_golden, test_brute_force
for case in DEFORM_CASES:
    check_golden(case, "custom")
for channels, groups in ((5, 1), (8, 1), (24, 1), (40, 5)):
    test_brute_force("custom", channels, groups, 19, (3, 3), (5, 6))
print("passed")
"""


@needs_op
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_other_instruction_sets(isa):
    assert run_python(RUN_KERNELS, TFCORR_ISA=isa).endswith("passed")


@needs_op
@pytest.mark.parametrize(
    "channels, outputs, groups",
    [(3, 5, 1), (8, 32, 1), (10, 33, 2), (24, 70, 3), (16, 24, 1), (64, 64, 8), (112, 48, 1)],
)
def test_products_of_bfloat16(monkeypatch, channels, outputs, groups):
    """AVX512-BF16: samples are rounded to bfloat16 as well; all else is what AVX-512 gives, to the bit."""
    if library.instruction_set() != "avx512bf16":
        pytest.skip("this processor does not multiply bfloat16 in vectors, or AMX was asked for")
    arguments = problem(31, (9, 14), (9, 14), channels, outputs, groups=groups)
    narrow = [a if i == 2 else tf.cast(a, tf.bfloat16) for i, a in enumerate(arguments)]
    wide = [np.asarray(tf.cast(a, tf.float32)) for a in narrow]
    gradient = tf.cast(np.random.default_rng(32).normal(size=(1, 9, 14, outputs)), tf.bfloat16)
    options = {"deform_groups": groups, "implementation": "custom"}
    found = {}
    for isa in ("", "avx512"):
        monkeypatch.setenv("TFCORR_ISA", isa)
        watched = [tf.constant(a) for a in narrow]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            output = deform_conv2d(*watched, **options)
        slopes = tape.gradient(output, watched, gradient)
        in_floats = np.asarray(deform_conv2d(*wide, **options))
        found[isa] = np.asarray(output, np.float32), [np.asarray(g) for g in slopes], in_floats
    (have, have_gradients, have_wide), (want, want_gradients, want_wide) = found.values()
    np.testing.assert_array_equal(have_wide, want_wide)
    for one, other in zip(have_gradients, want_gradients, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(have, want), "the products were those of AVX-512"
    # A sample is off by 2^-9 of itself at most, and so are the outputs when they are rounded.
    size = deform_conv2d(*(np.abs(a) if i != 2 else a for i, a in enumerate(wide)), **options)
    assert np.all(np.abs(have - want_wide) <= 2**-8 * (np.asarray(size) + np.abs(want_wide)))


@needs_op
def test_no_numbers_in_bfloat16(monkeypatch):
    """Infinities and NaN reach the outputs that they reach with other kernels."""
    arguments = problem(33, (9, 14), (9, 14), 24, 37)
    x, kernel = arguments[:2]
    x[0, 2, 3, 5], x[0, 7, 12, 9], x[0, 4, 8, 0], kernel[1, 2, 20, 30] = np.inf, np.nan, -np.inf, np.inf
    narrow = [a if i == 2 else tf.cast(a, tf.bfloat16) for i, a in enumerate(arguments)]
    found = []
    for isa in ("", "generic"):
        monkeypatch.setenv("TFCORR_ISA", isa)
        found.append(np.asarray(deform_conv2d(*narrow, implementation="custom"), np.float32))
    have, want = ([np.isnan(a), np.isposinf(a), np.isneginf(a)] for a in found)
    np.testing.assert_array_equal(have, want)
    assert all(kind.any() for kind in want) and not np.isfinite(found[1][..., 30]).any()


def fitting():
    """x, kernel, offset, mask, bias that fit together with two groups."""
    return dict(zip(NAMES, problem(23, (5, 6), (5, 6), 4, 3, groups=2), strict=True))


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"x": (5, 6, 4)}, {}, r"expects x \(batch, height, width, channels\); got x \(5, 6, 4\)"),
        ({"kernel": (3, 3, 4)}, {}, r"expects a kernel of known shape.*kernel \(3, 3, 4\)"),
        (
            {"kernel": (3, 3, 8, 3)},
            {},
            r"a kernel for the channels of x; got x \(1, 5, 6, 4\), kernel \(3, 3, 8, 3\)",
        ),
        ({"kernel": (0, 3, 4, 3)}, {}, r"at least one tap"),
        ({"offset": (1, 5, 6, 18)}, {}, r"= 36 offset channels; got .*offset \(1, 5, 6, 18\)"),
        ({"offset": (5, 6, 36)}, {}, r"expects offset \(batch"),
        ({"offset": (2, 5, 6, 36)}, {}, r"the same batch in x and offset"),
        ({"offset": (1, 4, 6, 36), "mask": (1, 4, 6, 18)}, {}, r"offset of height 5"),
        ({}, {"strides": 2}, r"offset of height 3"),
        ({}, {"output_size": (5, 7)}, r"grid of output_size \(5, 7\)"),
        ({"mask": (1, 5, 6, 9)}, {}, r"18 channels on the grid of offset; got .*mask \(1, 5, 6, 9\)"),
        ({"mask": (1, 5, 5, 18)}, {}, r"18 channels on the grid of offset"),
        ({"bias": (4,)}, {}, r"a bias for the outputs.*bias \(4,\)"),
        ({}, {"deform_groups": 3}, r"channels divisible by deform_groups; .*deform_groups 3"),
        ({}, {"deform_groups": 0}, r"deform_groups must be .*, got 0"),
        ({}, {"strides": (1, 0)}, r"strides must be one or two .*, got \(1, 0\)"),
        ({}, {"dilation_rate": 1.5}, r"dilation_rate must be .*, got 1.5"),
        ({}, {"padding": "full"}, r"padding must be .*, got 'full'"),
        ({}, {"padding": (1, 1)}, r"padding must be .*, got \(1, 1\)"),
        ({}, {"output_size": 5}, r"output_size must be None or a pair .*, got 5"),
        ({}, {"implementation": "fast"}, r"implementation is 'fast'"),
    ],
)
def test_refuses(changes, options, message):
    arguments = {**fitting(), **{name: np.zeros(shape, "float32") for name, shape in changes.items()}}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments, **{"deform_groups": 2, **options})


@pytest.mark.parametrize(
    "name, dtype, message",
    [
        ("x", "float16", "x of dtype float32 or bfloat16, got float16"),
        ("offset", "float64", "offset of dtype float32 with x of float32, got float64"),
        ("mask", "float64", "mask of dtype float32 with x of float32, got float64"),
    ],
)
def test_refuses_dtypes(name, dtype, message):
    arguments = fitting()
    arguments[name] = arguments[name].astype(dtype)
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments, deform_groups=2)


@needs_op
@pytest.mark.parametrize(
    "changes, options, message",
    [
        (
            {"kernel": (3, 3, 8, 3)},
            {},
            r"a kernel for the channels of x; got x \[1,5,6,4\], kernel \[3,3,8,3\]",
        ),
        (
            {"offset": (1, 5, 6, 18)},
            {},
            r"2 \* deform_groups \* kh \* kw offset channels; .*offset \[1,5,6,18\]",
        ),
        ({"offset": (1, 4, 6, 36), "mask": (1, 4, 6, 18)}, {}, r"offset on the output's grid of 5 x 6"),
        ({"mask": (1, 5, 5, 18)}, {}, r"a mask .* on the grid of offset"),
        ({"bias": (2,)}, {}, r"a bias for the outputs"),
        ({}, {"strides": [1]}, r"two strides \(y, x\) in .*, got \(1\)"),
        ({}, {"dilations": [0, 1]}, r"two dilations .*, got \(0, 1\)"),
        ({}, {"explicit_padding": [1, 1]}, r"got 2 numbers with padding SAME"),
    ],
)
def test_the_op_refuses(changes, options, message):
    """The compiled op also checks what only shows when the graph runs."""
    arguments = {**fitting(), **{name: np.zeros(shape, "float32") for name, shape in changes.items()}}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        library.load().tfcorr_deform_conv2d(**arguments, **{"deform_groups": 2, **options})


@needs_op
def test_the_op_refuses_in_a_graph():
    def call(x, offset):
        return library.load().tfcorr_deform_conv2d(
            x, tf.zeros((3, 3, 4, 5)), offset, tf.zeros((0,)), tf.zeros((0,)), has_mask=False, has_bias=False
        )

    with pytest.raises(ValueError, match=r"offset height = 9, got 8: x \[\?,9,\?,4\]"):
        tf.function(call).get_concrete_function(
            tf.TensorSpec((None, 9, None, 4)), tf.TensorSpec((None, 8, None, 18))
        )


def test_an_error_is_one_line():
    """Keras would add the values of all arguments."""
    with pytest.raises(ValueError) as caught:
        deform_conv2d(**fitting(), deform_groups=3)
    assert str(caught.value).startswith("deform_conv2d expects") and "\n" not in str(caught.value)


def test_custom_that_is_not_there(monkeypatch):
    monkeypatch.setattr(library, "_why_not_custom", lambda op: "not built yet")
    with pytest.raises(TfcorrError, match="not built yet"):
        deform_conv2d(**fitting(), deform_groups=2, implementation="custom")
    assert deform_conv2d(**fitting(), deform_groups=2).shape == (1, 5, 6, 3)
