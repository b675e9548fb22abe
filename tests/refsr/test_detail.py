"""A reference's detail: what the base gets wrong in it, and where that belongs in the output."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from tfcorr.refsr.detail import DETAIL_WIDTH, _smoothed, align, reference_detail, sample
from tfcorr.refsr.extractor import FEATURE_WIDTHS
from tfcorr.refsr.matching import pre_offsets
from tfcorr.refsr.memory import MemoryPlan, restorer_bytes
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.refsr.restorer import PRESETS, RestorerSizes
from tfcorr.refsr.upsampling import bicubic_reduction
from tfcorr.serving.files import ExportError

SIZES = {
    **TINY,
    "content_blocks": 0,
    "context": "matched",
    "gate": True,
    "base": {"features": 6, "blocks": 2},
    "detail": True,
}


def texture(height, width, seed=0):
    """A smooth texture (height, width) whose value at any place, also between pixels, is a sum of waves."""
    random = np.random.default_rng(seed)
    waves = random.normal(0, 0.5, (24, 2)), random.uniform(0, 6.3, 24)

    def at(y, x):
        return np.mean([np.sin(a * y + b * x + c) for (a, b), c in zip(*waves, strict=True)], axis=0)

    return at, at(*np.mgrid[:height, :width]).astype(np.float32)


def image(height, width, seed=0):
    return np.random.default_rng(seed).random((1, height, width, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = C2Matching.from_architecture({"restorer": SIZES})
    # A base that is no identity, a gate that is open.
    last = model.restorer.base.conv_last.kernel
    last.assign(np.random.default_rng(0).normal(0, 0.02, last.shape))
    model.restorer.gate.threshold.assign(-10.0)
    return model


def test_the_reduction_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((72, 48), Image.BICUBIC))
    expected = np.asarray(Image.fromarray(pixels).resize((18, 12), Image.BICUBIC), np.int32)
    found = np.rint(255 * np.asarray(bicubic_reduction(np.float32(pixels[None]) / 255)))[0]
    # Pillow rounds between its two passes.
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 0.25


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (-1.5, 2.25), (5.3, 4.8)])
def test_matches_are_moved_to_the_pixel(shift):
    at, query = texture(64, 80)
    y, x = np.mgrid[:72, :88]
    # What the query shows at p stands in the reference at p + shift + (4, 8).
    reference = at(y - 4 - shift[0], x - 8 - shift[1]).astype(np.float32)
    flow = np.broadcast_to(np.float32([4, 8]), (1, 16, 20, 2))
    found, correlation = map(np.asarray, align(query[None, ..., None], reference[None, ..., None], flow))
    error = np.abs(found[0] - np.float32([4, 8]) - shift)[3:-3, 3:-3]
    assert np.median(error) < 0.15
    assert np.mean(error.max(-1) < 0.5) > 0.95
    assert np.median(correlation) > 0.95
    # A texture that is not there is not found.
    _, unrelated = align(query[None, ..., None], texture(72, 88, 9)[1][None, ..., None], flow)
    assert np.median(unrelated) < 0.9


def test_a_flow_loses_its_noise_and_keeps_its_edges():
    random = np.random.default_rng(0)
    truth = np.zeros((1, 20, 24, 2), np.float32)
    truth[:, :, 12:] = (30.0, -7.0)
    flow = truth + random.normal(0, 0.3, truth.shape).astype(np.float32)
    correlation = np.full((1, 20, 24, 1), 0.9, np.float32)
    lost = random.random((1, 20, 24)) < 0.1
    flow[lost] += 6.0
    correlation[lost] = 0.2
    found = np.asarray(_smoothed(flow, correlation))
    error = np.abs(found - truth)
    assert np.mean(error < 0.6) > 0.98 and np.std((found - truth)[error < 0.6]) < 0.5 * 0.3
    # Without any trust, the median.
    nothing = np.asarray(_smoothed(truth, np.zeros_like(correlation)))
    np.testing.assert_allclose(nothing, truth, atol=1e-4)


def test_brightness_and_contrast_do_not_matter():
    _, query = texture(48, 48)
    flow = np.zeros((1, 12, 12, 2), np.float32)
    plain = align(query[None, ..., None], query[None, ..., None], flow)
    other = align(query[None, ..., None], 0.4 * query[None, ..., None] + 0.3, flow)
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_flat_images_stay_where_they_are():
    flat = np.full((1, 32, 32, 1), 0.5, np.float32)
    flow, correlation = map(np.asarray, align(flat, flat, np.zeros((1, 8, 8, 2), np.float32)))
    assert np.isfinite(flow).all()
    assert np.abs(flow).max() <= 6
    np.testing.assert_allclose(correlation, 0, atol=1e-3)


def test_cells_are_taken_from_where_they_flow():
    at, _ = texture(8, 8)
    y, x = np.mgrid[:40, :40]
    source = np.stack([at(y, x), 2 * at(y, x)], -1).astype(np.float32)
    flow = np.random.default_rng(0).uniform(2, 12, (1, 5, 6, 2)).astype(np.float32)
    found = np.asarray(sample(source[None], flow))
    assert found.shape == (1, 20, 24, 2)
    rows, columns = np.mgrid[:20, :24]
    expected = at(
        rows + np.kron(flow[0, ..., 0], np.ones((4, 4))), columns + np.kron(flow[0, ..., 1], np.ones((4, 4)))
    )
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=0.05)
    np.testing.assert_allclose(found[..., 1], 2 * found[..., 0], atol=1e-5)


def test_detail_is_what_the_base_gets_wrong(model):
    reference = image(24, 31, 3)
    detail = np.asarray(reference_detail(model.restorer.base, reference))
    assert detail.shape == (1, 24, 28, DETAIL_WIDTH)
    restored = np.asarray(model.restorer.base(bicubic_reduction(reference[:, :, :28])))
    np.testing.assert_allclose(detail[..., :3], reference[:, :, :28] - restored, atol=1e-6)
    np.testing.assert_allclose(detail[..., 3], restored @ np.float32([0.299, 0.587, 0.114]), atol=1e-5)
    assert FEATURE_WIDTHS["detail"] == DETAIL_WIDTH
    np.testing.assert_array_equal(model.extract(reference)["detail"], detail)


def test_a_reference_that_shows_the_same_lends_its_detail(model):
    """Without training: the sharp image itself as the reference brings the base's result nearer to it."""
    random = np.random.default_rng(1)
    sharp = random.integers(0, 256, (40, 48, 3), np.uint8)
    sharp = np.asarray(Image.fromarray(sharp).resize((96, 80), Image.BICUBIC), np.float32)[None] / 255
    lr = bicubic_reduction(sharp)
    references = model.prepare([sharp])
    index = np.arange(18 * 22).reshape(1, 18, 22)  # every patch at its own place
    offsets = pre_offsets(keras.ops.convert_to_tensor(index, "int32"), references.columns)
    gate = keras.ops.ones((1, 20, 24, 1))

    def error(features):
        restored = np.asarray(model.restore(lr, features, offsets, gate=gate))
        return np.abs(restored - sharp)[:, 8:-8, 8:-8].mean()

    base = np.abs(np.asarray(model.restorer.base(lr)) - sharp)[:, 8:-8, 8:-8].mean()
    assert error(references.features) < 0.6 * base
    # A shut gate leaves the base's result to the bit.
    shut = model.restore(lr, references.features, offsets, gate=keras.ops.zeros_like(gate))
    np.testing.assert_array_equal(shut, model.restorer.base(lr))


def test_the_predictor_takes_it_along(model):
    low_res, reference = image(20, 24)[0], image(70, 90, 1)[0]
    upscaler = SuperResolver(model, memory=10**9)
    whole = upscaler.upscale(low_res, [reference, image(40, 60, 2)[0]])
    assert whole.shape == (80, 96, 3)
    np.testing.assert_array_equal(whole, upscaler.upscale(low_res, [reference, image(40, 60, 2)[0]]))
    assert np.isfinite(upscaler.upscale(low_res)).all()


def test_sizes_and_memory():
    assert PRESETS["guided"].detail
    with pytest.raises(ValueError, match="`detail` needs a `base`"):
        RestorerSizes(detail=True)
    sizes = RestorerSizes(**SIZES)
    without = dataclasses.replace(sizes, detail=False)
    assert restorer_bytes(sizes) > restorer_bytes(without)
    plans = [MemoryPlan.of(C2Matching(s), 10**8) for s in (sizes, without)]
    assert plans[0].reference_bytes == plans[1].reference_bytes + 4 * DETAIL_WIDTH
    assert plans[0].extractor_bytes > plans[1].extractor_bytes


def test_weights_of_a_model_without_it_are_taken():
    with_detail = C2Matching.from_architecture({"restorer": SIZES})
    without = C2Matching.from_architecture({"restorer": {**SIZES, "detail": False}})
    absent = with_detail.take_weights(without)
    assert {name.rsplit("/", 1)[0] for name in absent} == {"restorer/detail_share", "restorer/large/cue_head"}


def test_onnx_is_refused(model, tmp_path):
    with pytest.raises(ExportError, match="ONNX export does not know"):
        SuperResolver(model).export(tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()
