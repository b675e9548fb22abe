import keras
import numpy as np
import pytest
from PIL import Image

from tfcorr.refsr.upsampling import BicubicUpsampling, Upsampling


def _pillow(image: np.ndarray, scale: int, method) -> np.ndarray:
    """Float channels through Pillow one by one: the same kernel without rounding to 8 bits."""
    height, width, channels = image.shape
    size = (width * scale, height * scale)
    planes = [np.asarray(Image.fromarray(image[..., c]).resize(size, method)) for c in range(channels)]
    return np.stack(planes, -1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4), (17, 12)])
@pytest.mark.parametrize(("name", "method"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_equals_pillow(shape, name, method, scale):
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    ours = keras.ops.convert_to_numpy(Upsampling(scale, name)(image[None]))[0]
    np.testing.assert_allclose(ours, _pillow(image, scale, method), atol=2e-6)


def test_quantized_equals_pillow_on_eight_bits(golden):
    pil = golden("data_prep", "pil")
    up = keras.ops.convert_to_numpy(BicubicUpsampling(4, quantize=True)(pil["lr"][None] / np.float32(255)))[0]
    difference = np.abs(np.round(up * 255) - pil["up"].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_rejects_what_it_cannot_do():
    with pytest.raises(ValueError, match="scale"):
        Upsampling(0)
    with pytest.raises(ValueError, match="interpolation"):
        Upsampling(4, "lanczos")
