"""Ways to find the points of a small image in a sharp reference, for comparison: the trained matcher, other
features in its place, and SIFT.

All see the same: the input after x4 bicubic upsampling, and the reference. Points and positions are (y, x) in
pixels of the enlarged input and of the reference, pixel centres at whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np

from tfcorr.config import ConfigError, resolve_data_path
from tfcorr.errors import TfcorrError
from tfcorr.imaging import upscale
from tfcorr.refsr.sift import match_sift, sift_features

STRIDE = 4
# The pixel at the middle of a cell of 4 pixels.
_MIDDLE = (STRIDE - 1) / 2
# How far a match of SIFT may speak for a point, in pixels.
_REACH = 8.0


class Matcher(Protocol):
    """Finds points of an image in a reference."""

    name: str
    fingerprint: str

    def locate(
        self, small: np.ndarray, reference: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) uint8, (H, W, 3) uint8 and (n, 2) points -> (n, 2) float64 positions, (n,) bool whether
        there is an answer."""


def inner_points(height: int, width: int) -> np.ndarray:
    """The middles of all cells with eight neighbours; a cell is a pixel of the height x width input."""
    cells = np.mgrid[1 : height - 1, 1 : width - 1].reshape(2, -1).T
    return cells * float(STRIDE) + _MIDDLE


class FeatureMatcher:
    """Matches 3x3 patches of features with a stride of 4 pixels, as the paper's matcher does (eq. 8).

    Args:
        name: in the tables.
        fingerprint: changes with what the matcher finds.
        query: (1, h, w, 3) float32 low-resolution image in [0, 1] -> (1, h, w, C).
        reference: (1, H, W, 3) float32 image in [0, 1] -> (1, H / 4, W / 4, C).
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        query: Callable[[np.ndarray], Any],
        reference: Callable[[np.ndarray], Any],
    ):
        self.name = name
        self.fingerprint = fingerprint
        self._query = query
        self._reference = reference

    def locate(
        self, small: np.ndarray, reference: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Matcher`; there is an answer for every point. A point is the middle of a patch."""
        return self.places(small, reference, points), np.ones(len(points), bool)

    def places(
        self, small: np.ndarray, reference: np.ndarray, points: np.ndarray, *, nearby: bool = False
    ) -> np.ndarray:
        """The positions of points (n, 2), float64; with ``nearby``, see `tfcorr.refsr.nearby.prefer_nearby`,
        for a reference of the enlarged input's size."""
        import keras

        from tfcorr.refsr.matching import PATCH_SIZE, correspondences, l2_normalize
        from tfcorr.refsr.nearby import prefer_nearby

        here, there = self._query(_unit(small)), self._reference(_unit(reference))
        found = correspondences(here, there)
        index, score = (keras.ops.convert_to_numpy(array)[0] for array in (found.index, found.score))
        if nearby:
            both = (keras.ops.convert_to_numpy(l2_normalize(cells))[0] for cells in (here, there))
            index, _ = prefer_nearby(*both, (0, 0), index, score)
        columns = int(there.shape[2]) - (PATCH_SIZE - 1)
        cells = np.rint((points - _MIDDLE) / STRIDE).astype(int) - 1
        row, column = np.divmod(index[cells[:, 0], cells[:, 1]], columns)
        return (np.stack([row, column], axis=-1) + 1) * float(STRIDE) + _MIDDLE


class RegisteredMatcher:
    """Features that see the reference in the view of the input, as a predictor does that registers it.

    Args:
        matcher: what finds the points there; or in the reference as it is, if it cannot be registered.
    """

    def __init__(self, matcher: FeatureMatcher):
        self.name = f"{matcher.name}, registered"
        self.fingerprint = f"{matcher.fingerprint}-registered"
        self._matcher = matcher

    def locate(
        self, small: np.ndarray, reference: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Matcher`."""
        from tfcorr.refsr.registration import register

        pixels = _unit(reference)[0]
        found = register(_unit(small)[0], pixels)
        if found is None:
            return self._matcher.locate(small, reference, points)
        warped = np.rint(found.warp(pixels) * 255).astype(np.uint8)
        places = self._matcher.places(small, warped, points, nearby=True)
        return found.position(places), np.ones(len(points), bool)


class SiftMatcher:
    """SIFT, see `tfcorr.refsr.sift`.

    A point takes the displacement of the matched keypoint nearest to it, and has no answer where the nearest
    one is farther than 8 pixels.
    """

    name = "SIFT"
    fingerprint = f"sift-{cv2.__version__}"

    def locate(
        self, small: np.ndarray, reference: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Matcher`."""
        here, there = match_sift(sift_features(upscale(small, STRIDE)), sift_features(reference))
        if not len(here):
            return points.copy(), np.zeros(len(points), bool)
        distance = np.linalg.norm(points[:, None] - here[None], axis=-1)
        nearest = distance.argmin(axis=1)
        return points + (there - here)[nearest], distance.min(axis=1) <= _REACH


def find_matcher(name: str, weights: Mapping[str, str], data_root: str | None) -> Matcher:
    """A matcher by its name.

    Args:
        name: ``sift``, ``rgb``, ``efficientnet_lite0``, ``vgg16``, or a model of the job correspondence or
            super-resolution.
        weights: files of ``efficientnet_lite0`` and ``vgg16``, below the data root; for the latter
            ``imagenet`` too.
        data_root: see `tfcorr.config.resolve_data_path`.

    Raises:
        TfcorrError: weights or a model are not there.
    """
    if name == "sift":
        return SiftMatcher()
    if name == "rgb":
        return FeatureMatcher("RGB patches", "rgb", lambda x: _pixels(_enlarged(x)), _pixels)
    if name in ("efficientnet_lite0", "vgg16"):
        if name not in weights:
            raise ConfigError(f"weights.{name}: missing, expected a file: the matcher {name!r} needs it")
        source = weights[name]
        if source != "imagenet":
            source = str(resolve_data_path(source, data_root))
        features = _lite0(source) if name == "efficientnet_lite0" else _vgg16(source)
        title = {"efficientnet_lite0": "EfficientNet-Lite0", "vgg16": "VGG16"}[name]
        return FeatureMatcher(title, f"{name}-{_digest(source)}", lambda x: features(_enlarged(x)), features)
    return _trained(name)


def _trained(name: str) -> Matcher:
    from tfcorr.pretrained import CORRESPONDENCE, WEIGHTS_FILE, find_model, load_super_resolution, verify
    from tfcorr.refsr.extractor import CorrespondenceNetwork
    from tfcorr.weights import load_weights

    try:
        card = find_model(name, job=CORRESPONDENCE)
    except TfcorrError:
        model, card = load_super_resolution(name)
        network = model.correspondence
    else:
        verify(card)
        network = CorrespondenceNetwork(**card.architecture)
        network.build()
        load_weights(network, card.folder / WEIGHTS_FILE)
    matcher = FeatureMatcher(
        card.name,
        card.checksums[WEIGHTS_FILE][:16],
        network.query_features,
        lambda image: network.reference_features(image)["conv3_1"],
    )
    return RegisteredMatcher(matcher) if card.registration else matcher


def _vgg16(source: str) -> Callable[[np.ndarray], Any]:
    from tfcorr.refsr.extractor import FeatureExtractor, load_imagenet_weights

    extractor = FeatureExtractor()
    try:
        load_imagenet_weights(extractor, source)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise TfcorrError(f"weights.vgg16: {error}") from error
    return lambda image: extractor(image)["conv3_1"]


def _lite0(source: str) -> Callable[[np.ndarray], Any]:
    from tfcorr.backbones import backbone

    network = backbone("efficientnet_lite0", source)
    return lambda image: network(image)[STRIDE]


def _pixels(image: np.ndarray) -> np.ndarray:
    """The pixels of each cell, without the image's mean colour: (1, H, W, 3) -> (1, H / 4, W / 4, 48)."""
    image = image - image.mean(axis=(1, 2), keepdims=True)
    _, height, width, channels = image.shape
    cells = image.reshape(1, height // STRIDE, STRIDE, width // STRIDE, STRIDE, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(1, height // STRIDE, width // STRIDE, -1)


def _enlarged(low_res: np.ndarray) -> np.ndarray:
    """Bicubic x4 of the 8-bit image, rounded to 8 bits, as the matcher's own fixed upsampling."""
    return _unit(upscale(np.rint(low_res[0] * 255).astype(np.uint8), STRIDE))


def _unit(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (1, H, W, 3) float32 in [0, 1]."""
    return image[None].astype(np.float32) / np.float32(255)


def _digest(source: str) -> str:
    from tfcorr.pretrained import sha256_of

    return source if source == "imagenet" else sha256_of(source)[:16]
