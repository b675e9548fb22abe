"""match_patches against the published numbers, and against a brute-force search in float64."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.ops import library
from tfcorr.ops.match_patches import match_patches

GOLDENS = Path(__file__).parents[1] / "goldens" / "feature_match.npz"
PIPELINE_CASES = ("rand16", "shift256", "ties_tiled", "const_padding", "zero_input_region", "tiny5")

needs_custom = pytest.mark.skipif(
    library.load() is None or not hasattr(library.load(), library.GENERATED_NAMES["match_patches"]),
    reason=f"compiled op: {library.status().reason}",
)
IMPLEMENTATIONS = ("reference", pytest.param("custom", marks=needs_custom))


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS) as file:
        return dict(file)


def random_maps(seed, batch, query_size, reference_size, channels):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, *query_size, channels)).astype("float32"),
        rng.normal(size=(batch, *reference_size, channels)).astype("float32"),
    )


def brute_force(query, reference, patch_size):
    """All correlations in float64, (B, h, w, reference patches), and the norms of the query's patches."""

    def patches(features):
        windows = np.lib.stride_tricks.sliding_window_view(
            features.astype("float64"), (patch_size, patch_size), axis=(1, 2)
        )
        return windows.reshape(*windows.shape[:3], int(np.prod(windows.shape[3:])))

    query, reference = patches(query), patches(reference)
    reference = reference.reshape(len(reference), int(np.prod(reference.shape[1:3])), reference.shape[3])
    reference = reference / (np.linalg.norm(reference, axis=-1, keepdims=True) + 1e-5)
    correlation = np.einsum("byxc,brc->byxr", query, reference)
    return correlation, np.linalg.norm(query, axis=-1)


def check_against_brute_force(query, reference, patch_size, matches):
    correlation, norm = brute_force(query, reference, patch_size)
    index, score = np.asarray(matches.index), np.asarray(matches.score)
    assert index.dtype == np.int32 and score.dtype == np.float32
    assert index.shape == score.shape == correlation.shape[:3]
    if index.size == 0:
        return
    np.testing.assert_allclose(score, correlation.max(-1) / (norm + 1e-5), atol=1e-6)
    # The score that belongs to the index, so that near-ties may go either way and nothing else.
    chosen = np.take_along_axis(correlation, index[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen / (norm + 1e-5), score, atol=1e-6)
    second = np.sort(correlation, axis=-1)[..., -2] if correlation.shape[-1] > 1 else -np.inf
    margin = (correlation.max(-1) - second) / (norm + 1e-5)
    clear = margin > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(index[clear], correlation.argmax(-1)[clear])


@pytest.mark.parametrize("case", PIPELINE_CASES)
def test_goldens_of_the_pipeline(goldens, case, implementation):
    maps = []
    for name in ("feat_in", "feat_ref"):
        features = goldens[f"{case}/{name}"].transpose(0, 2, 3, 1)
        norm = np.linalg.norm(features, axis=-1, keepdims=True)
        maps.append(features / np.maximum(norm, 1e-12))
    index, score = match_patches(*maps, implementation=implementation)
    clear = goldens[f"{case}/margin"] > 1e-4
    np.testing.assert_array_equal(np.asarray(index)[clear], goldens[f"{case}/max_idx"][clear])
    np.testing.assert_allclose(score, goldens[f"{case}/max_val"], atol=1e-5)
    if case == "ties_tiled":
        # Every score is tied; the published code promises the lowest index, and so do we.
        np.testing.assert_array_equal(index, goldens[f"{case}/max_idx"])


@pytest.mark.parametrize("case", ["raw_rect", "raw_p5"])
def test_goldens_of_the_bare_routine(goldens, case, implementation):
    patch_size, _, _, _, by_input_norm = goldens[f"{case}/options"]
    query, reference = (goldens[f"raw/{name}"].transpose(1, 2, 0)[None] for name in ("feat_in", "feat_ref"))
    index, score = match_patches(query, reference, patch_size=int(patch_size), implementation=implementation)
    np.testing.assert_array_equal(index[0], goldens[f"{case}/max_idx"])
    score = np.asarray(score)
    if not by_input_norm:
        score = score * (brute_force(query, reference, patch_size)[1] + 1e-5)
    np.testing.assert_allclose(score[0], goldens[f"{case}/max_val"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "query_size", "reference_size", "channels", "patch_size"),
    [
        (1, (9, 11), (13, 7), 16, 3),
        (3, (7, 6), (6, 9), 5, 3),
        (0, (7, 6), (6, 9), 5, 3),
        (1, (3, 3), (3, 3), 1, 3),
        (1, (3, 20), (4, 3), 17, 3),
        (2, (6, 5), (4, 7), 7, 1),
        (1, (9, 8), (11, 12), 6, 5),
        (1, (5, 5), (5, 9), 3, 5),
        (1, (8, 7), (5, 9), 9, 2),
        (1, (39, 41), (34, 37), 8, 3),  # several tiles in the portable implementation
        (1, (4, 140), (5, 300), 6, 3),  # ... and in the compiled one
        (1, (6, 30), (7, 40), 1100, 3),  # channels in several shares
    ],
)
def test_brute_force(batch, query_size, reference_size, channels, patch_size, implementation):
    maps = random_maps(0, batch, query_size, reference_size, channels)
    matches = match_patches(*maps, patch_size=patch_size, implementation=implementation)
    check_against_brute_force(*maps, patch_size, matches)


@needs_custom
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("patch_size", [1, 3, 4])
def test_each_instruction_set(monkeypatch, isa, patch_size):
    # Where the processor lacks the set that is named, the best one below it runs.
    monkeypatch.setenv("TFCORR_ISA", isa)
    for query_size, reference_size in (((10, 45), (12, 37)), ((5, 131), (6, 135))):
        maps = random_maps(1, 1, query_size, reference_size, 19)
        matches = match_patches(*maps, patch_size=patch_size, implementation="custom")
        check_against_brute_force(*maps, patch_size, matches)


@pytest.mark.parametrize("patch_size", [1, 3, 5])
def test_ties_go_to_the_lowest_index(patch_size, implementation):
    # A reference of equal cells 4 apart, wide enough for several tiles on both ways: every patch recurs.
    rng = np.random.default_rng(2)
    cell = rng.normal(size=(1, 4, 4, 6)).astype("float32")
    reference = np.tile(cell, (1, 10, 40, 1))[:, :39, :149]
    query = np.tile(cell, (1, 3, 36, 1))[:, 1:, 2:143]
    index, score = match_patches(query, reference, patch_size=patch_size, implementation=implementation)
    index = np.asarray(index)[0]
    y, x = np.indices(index.shape)
    np.testing.assert_array_equal(index, (y + 1) % 4 * (149 - patch_size + 1) + (x + 2) % 4)
    np.testing.assert_allclose(score, 1.0, atol=1e-4)


def test_zero_features(implementation):
    query, reference = random_maps(3, 1, (6, 7), (5, 8), 4)
    index, score = match_patches(np.zeros_like(query), reference, implementation=implementation)
    assert not np.any(index) and not np.any(score)
    index, score = match_patches(query, np.zeros_like(reference), implementation=implementation)
    assert not np.any(index) and not np.any(score)
    # A reference patch of zeros scores 0, which is more than a negative correlation.
    reference = -np.abs(reference)
    reference[:, 1:4, 2:5] = 0
    index, score = match_patches(np.abs(query), reference, implementation=implementation)
    assert np.all(np.asarray(index) == 1 * 6 + 2) and not np.any(score)


def test_features_that_are_not_finite(implementation):
    query, reference = random_maps(4, 1, (8, 9), (7, 10), 4)
    clean, _ = brute_force(query, reference, 3)
    query[0, 0, 0, 1] = np.nan
    reference[0, 6, 9, 2], reference[0, 6, 0, 2] = np.nan, np.inf
    index, score = match_patches(query, reference, implementation=implementation)
    assert np.all((np.asarray(index) >= 0) & (np.asarray(index) < 5 * 8))
    # Query patches without NaN find the best among the reference patches that are finite.
    clean = np.where(np.isin(np.arange(40), [4 * 8 + 7, 4 * 8]), -np.inf, clean)
    np.testing.assert_array_equal(np.asarray(index)[0, 1:], clean.argmax(-1)[0, 1:])
    assert np.all(np.isfinite(np.asarray(score)[0, 1:]))
    index, _ = match_patches(query, np.full_like(reference, np.nan), implementation=implementation)
    assert not np.any(index)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_floating_types_are_computed_in_float32(dtype, implementation):
    maps = [keras.ops.cast(m, dtype) for m in random_maps(5, 1, (7, 8), (9, 6), 12)]
    matches = match_patches(*maps, implementation=implementation)
    check_against_brute_force(*(np.asarray(keras.ops.cast(m, "float32")) for m in maps), 3, matches)


@needs_custom
def test_result_does_not_depend_on_the_number_of_threads(tmp_path):
    # More threads than processors, so that the units are taken in another order than in this process.
    code = (
        "import sys, numpy as np, tensorflow as tf;"
        "tf.config.threading.set_intra_op_parallelism_threads(5);"
        "from tfcorr.ops.match_patches import match_patches;"
        "maps = np.load(sys.argv[1]);"
        "m = match_patches(maps['arr_0'], maps['arr_1'], implementation='custom');"
        "np.savez(sys.argv[1], index=np.asarray(m.index), score=np.asarray(m.score))"
    )
    maps = random_maps(6, 1, (40, 33), (37, 50), 24)
    np.savez(tmp_path / "maps.npz", *maps)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "maps.npz")], check=True)
    index, score = match_patches(*maps, implementation="custom")
    with np.load(tmp_path / "maps.npz") as other:
        np.testing.assert_array_equal(index, other["index"])
        np.testing.assert_array_equal(score, other["score"])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_of_unknown_sizes(jit_compile, implementation):
    if jit_compile and implementation == "custom":
        pytest.skip("XLA does not know the compiled op")
    shape = (None, None, None, 8)
    signature = None if jit_compile else [tf.TensorSpec(shape), tf.TensorSpec(shape)]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(query, reference):
        return match_patches(query, reference, implementation=implementation)

    for sizes in ((2, (5, 7), (6, 4)), (1, (35, 36), (4, 40)), (0, (4, 4), (5, 5)))[
        : 1 if jit_compile else 3
    ]:
        maps = random_maps(7, *sizes, 8)
        check_against_brute_force(*maps, 3, run(*maps))


def test_functional_model(implementation):
    query, reference = keras.Input((None, 9, 5)), keras.Input((6, None, 5))
    matches = match_patches(query, reference, patch_size=2, implementation=implementation)
    assert matches.index.shape == matches.score.shape == (None, None, 8)
    assert (matches.index.dtype, matches.score.dtype) == ("int32", "float32")
    model = keras.Model([query, reference], list(matches))
    maps = random_maps(8, 2, (7, 9), (6, 11), 5)
    clone = keras.Model.from_config(model.get_config())
    for computed in (model(list(maps)), clone.predict(list(maps), verbose=0)):
        check_against_brute_force(*maps, 2, type(matches)(*computed))


@pytest.mark.parametrize("graph", [False, True])
def test_no_gradient_and_no_error_in_training(graph, implementation):
    maps = random_maps(9, 1, (6, 7), (5, 6), 4)

    def gradients(query, reference):
        with tf.GradientTape() as tape:
            tape.watch([query, reference])
            score = match_patches(query, reference, implementation=implementation).score
            loss = tf.reduce_sum(score) + 2 * tf.reduce_sum(query)
        return tape.gradient(loss, [query, reference], unconnected_gradients="zero")

    computed = (tf.function(gradients) if graph else gradients)(*map(tf.constant, maps))
    np.testing.assert_array_equal(computed[0], np.full_like(maps[0], 2))
    np.testing.assert_array_equal(computed[1], np.zeros_like(maps[1]))


def test_tflite_with_builtin_operators_only():
    module = tf.Module()
    spec = tf.TensorSpec((1, None, None, 8))
    module.run = tf.function(
        lambda query, reference: match_patches(query, reference, implementation="reference")._asdict(),
        input_signature=[spec, spec],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.run.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    runner = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
    for sizes in (((5, 7), (6, 4)), ((34, 36), (9, 40))):
        query, reference = random_maps(10, 1, *sizes, 8)
        computed = runner(query=query, reference=reference)
        expected = match_patches(query, reference, implementation="reference")
        check_against_brute_force(query, reference, 3, type(expected)(computed["index"], computed["score"]))


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_other_keras_backends(backend, tmp_path):
    # Keras' NumPy backend stands on JAX, too.
    pytest.importorskip("jax")
    maps = random_maps(11, 2, (9, 36), (6, 8), 6)
    np.savez(tmp_path / "maps.npz", *maps)
    code = (
        "import sys, numpy as np, keras;"
        "assert keras.backend.backend() == sys.argv[2];"
        "from tfcorr.ops.match_patches import match_patches;"
        "maps = np.load(sys.argv[1] + '/maps.npz');"
        "m = match_patches(maps['arr_0'], maps['arr_1']);"
        "np.savez(sys.argv[1] + '/out.npz', index=np.asarray(m.index), score=np.asarray(m.score))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), backend],
        check=True,
        env=os.environ | {"KERAS_BACKEND": backend},
    )
    with np.load(tmp_path / "out.npz") as out:
        matches = type(match_patches(*maps))(out["index"], out["score"])
    check_against_brute_force(*maps, 3, matches)


@pytest.mark.parametrize(
    ("query_shape", "reference_shape", "patch_size", "message"),
    [
        ((1, 5, 5), (1, 5, 5, 2), 3, "two maps"),
        ((1, 5, 5, 2), (2, 5, 5, 2), 3, "same batch"),
        ((1, 5, 5, 2), (1, 5, 5, 3), 3, "same channels"),
        ((1, 5, 2, 2), (1, 5, 5, 2), 3, "at least patch_size"),
        ((1, 5, 5, 2), (1, 4, 5, 2), 5, "at least patch_size"),
        ((1, 5, 5, 0), (1, 5, 5, 0), 3, "at least one channel"),
    ],
)
def test_wrong_shapes(query_shape, reference_shape, patch_size, message, implementation):
    with pytest.raises(ValueError, match=message) as error:
        match_patches(
            np.zeros(query_shape, "float32"),
            np.zeros(reference_shape, "float32"),
            patch_size=patch_size,
            implementation=implementation,
        )
    assert str(query_shape) in str(error.value) and str(reference_shape) in str(error.value)


@pytest.mark.parametrize("patch_size", [0, -1, 1.5, True, None])
def test_wrong_patch_size(patch_size):
    with pytest.raises(ValueError, match="patch_size"):
        match_patches(np.zeros((1, 5, 5, 2)), np.zeros((1, 5, 5, 2)), patch_size=patch_size)


def test_integer_features_are_refused(implementation):
    with pytest.raises(ValueError, match="floating query"):
        match_patches(np.zeros((1, 5, 5, 2), "int32"), np.zeros((1, 5, 5, 2)), implementation=implementation)


def test_sizes_that_only_the_graph_knows_are_checked(implementation):
    run = tf.function(
        lambda query, reference: match_patches(query, reference, implementation=implementation),
        input_signature=[tf.TensorSpec((None, None, None, 2))] * 2,
    )
    for query_shape, reference_shape in (((1, 5, 5, 2), (1, 2, 5, 2)), ((1, 2, 5, 2), (1, 5, 5, 2))):
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(tf.zeros(query_shape), tf.zeros(reference_shape))
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(tf.zeros((2, 5, 5, 2)), tf.zeros((1, 5, 5, 2)))
