"""Quality measures against the published evaluation code's numbers and a brute-force SSIM."""

from pathlib import Path

import numpy as np
import pytest

from tfcorr.imaging import metrics

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "metrics.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize("as_dtype", [np.uint8, np.uint16, np.float32])
def test_golden(golden, case, as_dtype):
    sr, hr = (golden[f"{case}/{name}"][..., ::-1] for name in ("sr_bgr", "gt_bgr"))
    np.testing.assert_allclose(metrics.rgb_to_y(hr), golden[f"{case}/gt_y"], atol=2e-5)
    factor = {np.uint8: 1, np.uint16: 257, np.float32: np.float32(1 / 255)}[as_dtype]
    sr, hr = (sr * factor).astype(as_dtype), (hr * factor).astype(as_dtype)
    cropped = metrics.evaluate_pair(sr, hr, border=4)
    whole = metrics.evaluate_pair(sr, hr, border=0)
    np.testing.assert_allclose(cropped["psnr_y"], golden[f"{case}/psnr_y_crop4"], atol=1e-3)
    np.testing.assert_allclose(cropped["psnr_rgb"], golden[f"{case}/psnr_rgb_crop4"], atol=1e-3)
    np.testing.assert_allclose(cropped["ssim_y"], golden[f"{case}/ssim_y_crop4"], atol=1e-5)
    np.testing.assert_allclose(whole["psnr_rgb"], golden[f"{case}/psnr_rgb_crop0"], atol=1e-3)
    np.testing.assert_allclose(whole["ssim_y"], golden[f"{case}/ssim_y_crop0"], atol=1e-5)


def test_ssim_against_loop():
    random = np.random.default_rng(0)
    a, b = random.random((14, 13)), random.random((14, 13))
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(4):
        for x in range(3):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    np.testing.assert_allclose(metrics.ssim(a, b, data_range=1.0), np.mean(values), rtol=1e-9)


def test_ssim_of_channels_is_their_mean():
    random = np.random.default_rng(1)
    a, b = (random.integers(0, 256, (16, 16, 3)) for _ in range(2))
    expected = np.mean([metrics.ssim(a[..., c], b[..., c]) for c in range(3)])
    np.testing.assert_allclose(metrics.ssim(a, b), expected, rtol=1e-12)


def test_equal_images():
    image = np.random.default_rng(2).integers(0, 256, (24, 24, 3), np.uint8)
    scores = metrics.evaluate_pair(image, image)
    assert scores["psnr_y"] == scores["psnr_rgb"] == float("inf")
    np.testing.assert_allclose(scores["ssim_y"], 1.0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: metrics.psnr(np.zeros(3), np.zeros(4)), ValueError, r"\(3,\) and \(4,\)"),
        (
            lambda: metrics.ssim(np.zeros((10, 20)), np.zeros((10, 20))),
            ValueError,
            r"at least 11.*\(10, 20\)",
        ),
        (lambda: metrics.rgb_to_y(np.zeros((4, 4))), ValueError, r"\(4, 4\)"),
        (lambda: metrics.evaluate_pair(np.zeros((18, 18, 3)), np.zeros((18, 18, 3))), ValueError, "18x18"),
        (lambda: metrics.evaluate_pair(np.zeros((18, 18)), np.zeros((18, 18))), ValueError, r"\(H, W, 3\)"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
