"""Features of a frozen backbone, computed once and kept on disk, so that training fits a small machine.

A photograph and its mirror image have a record each, with the maps of stride 16 and 32 in float16 (which
changes a feature by less than 0.05 %).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from tfcorr.semantic.records import Records
from tfcorr.training.photos import PhotoCache

__all__ = ["STRIDES", "Extractor", "FeatureCache", "feature_fields", "files_key", "network_image"]

STRIDES = (16, 32)


def network_image(photo: np.ndarray, size: int, flip: bool = False) -> np.ndarray:
    """A photograph as the network takes it: Pillow's bilinear resize, the sides' ratio not kept (published).

    Args:
        photo: (H, W, 3) uint8.
        size: side of the result in pixels.
        flip: mirror it.

    Returns:
        float32 (size, size, 3) in [0, 1].
    """
    resized = photo
    if photo.shape[:2] != (size, size):
        resized = np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR))
    if flip:
        resized = np.ascontiguousarray(resized[:, ::-1])
    return resized.astype(np.float32) / np.float32(255)


class Extractor:
    """A frozen backbone as a compiled function of images of one size.

    Args:
        backbone: from `tfcorr.backbones.backbone`.
        size: side of the images in pixels.

    Attributes:
        shapes: stride -> (h, w, C) of its map.
        key: names the backbone, its weights and the size.
    """

    def __init__(self, backbone: keras.Model, size: int):
        import tensorflow as tf

        self.size = size

        @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)], autograph=False)
        def maps(images):
            found = backbone(images, training=False)
            return {stride: tf.cast(found[stride], tf.float32) for stride in STRIDES}

        self._maps = maps
        first = self(np.zeros((1, size, size, 3), np.float32))
        self.shapes = {stride: first[stride].shape[1:] for stride in STRIDES}
        digest = hashlib.sha256()
        for weight in backbone.weights:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
        self.key = f"{backbone.name}-{digest.hexdigest()[:16]}-{size}"

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the finer map, on which flows are defined."""
        return self.shapes[STRIDES[0]][:2]

    def __call__(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """(B, size, size, 3) in [0, 1] -> stride -> (B, h, w, C) float32."""
        return {stride: map_.numpy() for stride, map_ in self._maps(images).items()}


def feature_fields(extractor: Extractor, prefix: str = "") -> dict[str, tuple[tuple[int, ...], str]]:
    """The fields of a record with the maps of one image, named ``<prefix><stride>``."""
    return {f"{prefix}{stride}": (tuple(shape), "<f2") for stride, shape in extractor.shapes.items()}


def files_key(paths: Sequence[Path], **also) -> str:
    """Sixteen hexadecimal digits that change with the files' names and sizes, and with what else counts."""
    rows = [
        [path.parent.name, path.name, os.path.getsize(path) if path.is_file() else None] for path in paths
    ]
    return hashlib.sha256(json.dumps([rows, also], sort_keys=True, default=str).encode()).hexdigest()[:16]


class FeatureCache:
    """Feature maps of photographs and their mirror images.

    Args:
        folder: of the records; shared by all that use the same backbone, size and photographs.
        extractor: computes what is missing.
        images: paths; one that cannot be read gets a record that says so.
        photos: decodes them.
        shard: records in a file.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        extractor: Extractor,
        images: Sequence[Path],
        photos: PhotoCache,
        *,
        shard: int = 32,
    ):
        self._extractor = extractor
        self._images = list(images)
        self._photos = photos
        self._number = {path: number for number, path in enumerate(self._images)}
        self._records = Records(
            folder,
            {**feature_fields(extractor), "readable": ((), "u1")},
            2 * len(self._images),
            shard=shard,
            key=f"{extractor.key}-{files_key(self._images)}",
        )

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Computes what is missing or damaged."""
        self._records.check()
        todo = self._records.missing()
        for done, number in enumerate(todo, start=1):
            images = [self._image(index) for index in self._records.members(number)]
            blank = np.zeros((self._extractor.size,) * 2 + (3,), np.float32)
            maps = self._extractor(np.stack([blank if image is None else image for image in images]))
            arrays = {str(stride): map_ for stride, map_ in maps.items()}
            arrays["readable"] = np.array([image is not None for image in images])
            self._records.write(number, arrays)
            progress(done, len(todo))

    def _image(self, index: int) -> np.ndarray | None:
        number, flip = divmod(index, 2)
        photo = self._photos.get(self._images[number])
        return None if photo is None else network_image(photo, self._extractor.size, bool(flip))

    def read(self, path: Path, flip: bool) -> dict[int, np.ndarray] | None:
        """The maps of one photograph: stride -> (h, w, C) float32; None if it could not be read."""
        found = self._records.read([2 * self._number[path] + int(flip)])
        if not found["readable"][0]:
            return None
        return {stride: found[str(stride)][0].astype(np.float32) for stride in STRIDES}
