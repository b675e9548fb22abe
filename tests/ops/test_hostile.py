"""The compiled ops with input that is wrong, empty, enormous or not finite: an answer or a refusal."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfcorr.ops import deform_conv2d, deform_conv_portable, library, match_patches
from tfcorr.toolchain import BuildError, find_compiler

ROOT = Path(__file__).parents[2]
HUGE = (1 << 24, (1 << 24) + 1, 1 << 31, 1 << 40, (1 << 62) + 1)

needs_op = pytest.mark.skipif(library.load() is None, reason=library.status().reason)
REFUSALS = (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)


def raw_deform(x, kernel, offset, mask, bias, output_gradient=None, **attributes):
    """Calls the op itself, without the checks of the Python function."""
    attributes = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "padding": "SAME",
        "explicit_padding": [],
        "deform_groups": 1,
        "free_grid": False,
        "has_mask": True,
        "has_bias": True,
    } | attributes
    arguments = {"x": x, "kernel": kernel, "offset": offset, "mask": mask, "bias": bias}
    if output_gradient is None:
        return library.load().tfcorr_deform_conv2d(**arguments, **attributes)
    return library.load().tfcorr_deform_conv2d_grad(
        **arguments, output_gradient=output_gradient, **attributes
    )


def arrays(**changes):
    """Shapes of a small convolution that is right, with some of them changed, as zeros."""
    shapes = {
        "x": (1, 4, 5, 2),
        "kernel": (3, 3, 2, 3),
        "offset": (1, 4, 5, 18),
        "mask": (1, 4, 5, 9),
        "bias": (3,),
    } | changes
    return {name: tf.zeros(shape) for name, shape in shapes.items()}


@needs_op
@pytest.mark.parametrize(
    "changes",
    [
        {"x": (4, 5, 2)},
        {"x": (2, 4, 5, 2)},
        {"x": (1, 4, 5, 3)},
        {"x": (1, 4, 6, 2)},
        {"x": (1, 4, 5, 0), "kernel": (3, 3, 0, 3)},
        {"kernel": (3, 3, 2)},
        {"kernel": (0, 3, 2, 3)},
        {"kernel": (3, 3, 2, 4)},
        {"kernel": (5, 3, 2, 3)},
        {"offset": (1, 4, 5, 17)},
        {"offset": (1, 4, 5, 0)},
        {"offset": (1, 3, 5, 18)},
        {"offset": (18,)},
        {"offset": ()},
        {"mask": (1, 4, 5, 8)},
        {"mask": (0,)},
        {"bias": (2,)},
        {"bias": (3, 1)},
        {"bias": ()},
    ],
)
def test_shapes_that_do_not_fit(changes):
    for gradient in (None, tf.zeros((1, 4, 5, 3))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="deform_conv2d expects"):
            raw_deform(**arrays(**changes), output_gradient=gradient)


@needs_op
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1]},
        {"strides": [0, 1]},
        {"strides": [1, 1 << 40]},
        {"strides": []},
        {"dilations": [1, -1]},
        {"dilations": [1 << 62, 1 << 62]},
        {"explicit_padding": [1, 1, 1, 1]},
        {"padding": "EXPLICIT"},
        {"padding": "EXPLICIT", "explicit_padding": [1, 1, 1, -1]},
        {"padding": "EXPLICIT", "explicit_padding": [1, 1, 1, 1 << 62]},
        {"deform_groups": 1 << 62},
        {"deform_groups": 3},
        {"has_mask": False},
        {"has_bias": False},
    ],
)
def test_attributes_that_do_not_fit(attributes):
    for gradient in (None, tf.zeros((1, 4, 5, 3))):
        with pytest.raises(tf.errors.InvalidArgumentError):
            raw_deform(**arrays(), output_gradient=gradient, **attributes)


@needs_op
def test_output_gradient_of_another_shape():
    for shape in ((1, 4, 5, 2), (1, 5, 4, 3), (0, 4, 5, 3), (3,), ()):
        with pytest.raises(tf.errors.InvalidArgumentError, match="output gradient"):
            raw_deform(**arrays(), output_gradient=tf.zeros(shape))


@needs_op
@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("place", ["batch", "height", "width", "outputs", "out", "taps"])
def test_tensors_without_values_may_have_any_other_side(place, size):
    """Products of the sides overflow where none is checked. A refusal is right, so is an empty answer."""
    batch, height, width, outputs, out, taps = 0, 1 << 20, 3, 2, 3, 3
    free_grid = place == "out"
    if place == "batch":
        batch, height, width = size, 0, 3
    elif place == "height":
        height = size
    elif place == "width":
        width = size
    elif place == "outputs":
        outputs = size
    elif place == "taps":
        taps, outputs = size, 0
    out_height, out_width = (size, out) if free_grid else (height, width)
    samples = taps * 3
    shapes = {
        "x": (batch, height, width, 1),
        "kernel": (taps, 3, 1, outputs),
        "offset": (batch, out_height, out_width, 2 * samples),
        "mask": (batch, out_height, out_width, samples),
        "bias": (0,),
    }
    try:
        tensors = arrays(**shapes)
        gradient = tf.zeros((batch, out_height, out_width, outputs))
    except Exception as error:  # TensorFlow has no such tensors
        pytest.skip(f"no such tensor: {str(error).splitlines()[0][:80]}")
    for given in (None, gradient):
        try:
            results = raw_deform(**tensors, output_gradient=given, has_bias=False, free_grid=free_grid)
        except REFUSALS:
            continue
        for result in results if given is not None else [results]:
            assert not np.any(result.numpy())


@needs_op
@pytest.mark.parametrize("x", [(1, 0, 1 << 20, 2), (1, 1 << 20, 0, 2), (1, 0, 0, 2)])
def test_empty_image_costs_nothing_and_gives_the_bias(x):
    tensors = arrays(x=x, bias=(3,))
    tensors["bias"] = tf.constant([1.0, 2.0, 3.0])
    tensors["offset"] = tf.random.stateless_normal((1, 4, 5, 18), (1, 2))
    output = raw_deform(**tensors, free_grid=True)
    np.testing.assert_array_equal(output, np.broadcast_to([1.0, 2.0, 3.0], (1, 4, 5, 3)))
    gradients = raw_deform(**tensors, free_grid=True, output_gradient=tf.ones((1, 4, 5, 3)))
    assert not any(np.any(gradient.numpy()) for gradient in gradients[:4])
    np.testing.assert_array_equal(gradients[4], [20.0, 20.0, 20.0])


@needs_op
def test_gradients_of_an_empty_output_are_zero():
    tensors = arrays(offset=(1, 0, 5, 18), mask=(1, 0, 5, 9))
    gradients = raw_deform(**tensors, free_grid=True, output_gradient=tf.zeros((1, 0, 5, 3)))
    assert [tuple(gradient.shape) for gradient in gradients] == [
        tuple(tensors[name].shape) for name in ("x", "kernel", "offset", "mask", "bias")
    ]
    assert not any(np.any(gradient.numpy()) for gradient in gradients)


@pytest.mark.parametrize("implementation", [pytest.param("custom", marks=needs_op), "reference"])
@pytest.mark.parametrize("channels", [1, 8, 80])  # 80: several parts of a group in the backward pass
def test_samples_outside_have_no_gradient_whatever_comes_from_above(channels, implementation):
    random = np.random.default_rng(3)
    x = tf.constant(random.normal(size=(1, 4, 4, channels)).astype("float32"))
    kernel = tf.constant(random.normal(size=(3, 3, channels, 2)).astype("float32"))
    offset = np.full((1, 4, 4, 9, 2), 0.25, "float32")
    outside = random.uniform(size=(1, 4, 4, 9)) < 0.5
    strange = np.array([np.nan, np.inf, -np.inf, 3e38, -1e9, 2.0**31, 40.0], "float32")
    offset[outside] = random.choice(strange, size=(outside.sum(), 2))
    offset = tf.constant(offset.reshape(1, 4, 4, 18))
    mask = tf.ones((1, 4, 4, 9))
    with tf.GradientTape() as tape:
        tape.watch([offset, mask])
        output = deform_conv2d(x, kernel, offset, mask, implementation=implementation)
    assert np.all(np.isfinite(output))
    above = np.full(output.shape, np.inf, "float32")
    above[..., 1] = np.nan
    d_offset, d_mask = tape.gradient(output, [offset, mask], output_gradients=tf.constant(above))
    if implementation == "custom":  # the portable one multiplies by zero, which keeps NaN
        np.testing.assert_array_equal(d_offset.numpy().reshape(1, 4, 4, 9, 2)[outside], 0.0)
        np.testing.assert_array_equal(d_mask.numpy()[outside], 0.0)


@needs_op
@pytest.mark.parametrize(
    ("query", "reference", "patch_size"),
    [
        ((5, 5, 2), (1, 5, 5, 2), 3),
        ((1, 5, 5, 2), (2, 5, 5, 2), 3),
        ((1, 5, 5, 2), (1, 5, 5, 3), 3),
        ((1, 5, 5, 0), (1, 5, 5, 0), 3),
        ((1, 2, 5, 2), (1, 5, 5, 2), 3),
        ((1, 5, 5, 2), (1, 5, 5, 2), 6),
        ((1, 5, 5, 2), (1, 5, 5, 2), 1 << 62),
        ((1, 0, 0, 2), (1, 5, 5, 2), 1),
        ((0, 1 << 31, 1 << 31, 1), (0, 5, 5, 1), 1),
        ((0, 1 << 20, 1 << 20, 1), (0, 1 << 20, 1 << 20, 1), 3),
        ((), (), 3),
    ],
)
def test_maps_that_do_not_fit(query, reference, patch_size):
    try:
        maps = tf.zeros(query), tf.zeros(reference)
    except Exception as error:  # TensorFlow has no such tensors
        pytest.skip(f"no such tensor: {str(error).splitlines()[0][:80]}")
    with pytest.raises(tf.errors.InvalidArgumentError, match="match_patches expects"):
        library.load().tfcorr_match_patches(query=maps[0], reference=maps[1], patch_size=patch_size)


@needs_op
def test_empty_batch_has_no_matches():
    for rows in (5, 1 << 20):
        index, score = library.load().tfcorr_match_patches(
            query=tf.zeros((0, rows, 7, 2)), reference=tf.zeros((0, 6, 1 << 18, 2)), patch_size=5
        )
        assert index.shape == score.shape == (0, rows - 4, 3)


@needs_op
def test_random_shapes_through_the_op():
    """Random inconsistent shapes and attributes: an answer of the right shape, or InvalidArgument."""
    random = np.random.default_rng(20261122)
    pick = lambda *choices: int(random.choice(choices))  # noqa: E731
    answers = refusals = 0
    for _ in range(300):
        groups, kh, kw = pick(1, 1, 2, 3), pick(1, 2, 3), pick(1, 3)
        channels, outputs, batch = groups * pick(1, 2, 5), pick(0, 1, 3), pick(0, 1, 2)
        samples = groups * kh * kw
        grid = (pick(0, 1, 4), pick(1, 3))
        shapes = {
            "x": [batch, pick(0, 1, 4), pick(1, 5), channels],
            "kernel": [kh, kw, channels, outputs],
            "offset": [batch, *grid, 2 * samples],
            "mask": [batch, *grid, samples],
            "bias": [outputs],
        }
        gradient = [batch, *grid, outputs]
        if random.uniform() < 0.5:
            target = shapes[random.choice(list(shapes))]
            if random.uniform() < 0.3:
                target.append(pick(0, 1, 2))
            else:
                target[random.integers(len(target))] = pick(0, 1, 2, 7)
        tensors = {
            name: tf.constant(
                random.choice(
                    [0.5, -1.5, np.nan, np.inf, -3e38], p=[0.45, 0.45, 0.04, 0.03, 0.03], size=shape
                ),
                tf.float32,
            )
            for name, shape in shapes.items()
        }
        attributes = {"deform_groups": groups, "free_grid": True, "strides": [pick(1, 2), pick(1, 3)]}
        for above in (None, tf.zeros(gradient)):
            try:
                result = raw_deform(**tensors, output_gradient=above, **attributes)
            except tf.errors.InvalidArgumentError:
                refusals += 1
                continue
            answers += 1
            if above is None:
                assert result.shape == gradient
            else:
                assert [list(r.shape) for r in result] == list(shapes.values())
    assert answers > 50 and refusals > 50


def test_portable_indices_are_wide_enough():
    assert deform_conv_portable._index_dtype(1, 16381, 16382, 7) == "int32"
    assert deform_conv_portable._index_dtype(1, 16381, 16382, 8) == "int64"
    assert deform_conv_portable._index_dtype(1, None, 16382, 8) == "int32"


@needs_op
def test_many_threads_at_once():
    """Results of concurrent calls are those of one call, to the last bit."""
    random = np.random.default_rng(7)

    def problem(size):
        x = random.normal(size=(1, size, size + 3, 8)).astype("float32")
        offset = random.normal(size=(1, size, size + 3, 36)).astype("float32") * 3
        mask = random.uniform(size=(1, size, size + 3, 18)).astype("float32")
        kernel = random.normal(size=(3, 3, 8, 5)).astype("float32")
        return tuple(map(tf.constant, (x, kernel, offset, mask)))

    problems = [problem(size) for size in (3, 8, 17, 24)]

    def work(number):
        x, kernel, offset, mask = problems[number % len(problems)]
        with tf.GradientTape() as tape:
            tape.watch([x, kernel, offset, mask])
            output = deform_conv2d(x, kernel, offset, mask, deform_groups=2, implementation="custom")
        gradients = tape.gradient(output, [x, kernel, offset, mask])
        matches = match_patches(x, x, implementation="custom")
        return [array.numpy() for array in (output, *gradients, *matches)]

    alone = [work(number) for number in range(len(problems))]
    with ThreadPoolExecutor(8) as pool:
        for number, results in enumerate(pool.map(work, range(64))):
            for have, want in zip(results, alone[number % len(problems)], strict=True):
                np.testing.assert_array_equal(have, want)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_fuzzer_under_a_sanitizer(sanitizer):
    """A few of the cases of scripts/fuzz_ops.sh, which compiles for a minute where that has not been done."""
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    library_file = {"asan": "libasan.so", "tsan": "libtsan.so"}[sanitizer]
    found = subprocess.run(
        [*compiler, f"-print-file-name={library_file}"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(found) or shutil.which("bash") is None:
        pytest.skip(f"the compiler has no {library_file}")
    cases = {"asan": 3000, "tsan": 300}[sanitizer]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "fuzz_ops.sh"), "--sanitizer", sanitizer, "--cases", str(cases)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(rf"fuzz_ops: {cases} cases passed", done.stdout)
