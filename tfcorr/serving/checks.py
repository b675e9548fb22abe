"""What an exported graph refuses, and how it says so.

The checks are part of the graph, so that they hold wherever it runs: a server answers INVALID_ARGUMENT with
the sentence behind `tfcorr: `. Each check waits for the one before, and what follows waits for all of them:
nothing is computed from an input that has not been accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tfcorr.serving.files import ExportError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Signature, length and name of the first chunk; width and height stand behind them, and its checksum last.
_PNG_SIZE_AT = 16
_PNG_SHORTEST = 33


@dataclass(frozen=True)
class Limits:
    """How much one call of an exported graph takes on; a graph computes an image in one piece.

    Attributes:
        pixels: pixels of all inputs of a batch together.
        reference_pixels: pixels of all references of a call together.
        references: references of one call of `from_bytes`.

    Raises:
        ExportError: one of them is no whole number of at least 1.
    """

    pixels: int = 512 * 512
    reference_pixels: int = 2048 * 2048
    references: int = 16

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ExportError(f"limits: {name} is {value!r}, expected a whole number of at least 1")


def require(condition: tf.Tensor, sentence: str, *values: tf.Tensor) -> tf.Operation:
    """Makes the graph fail with INVALID_ARGUMENT unless `condition` holds.

    Args:
        condition: bool scalar.
        sentence: what is wrong and what would be right; `{}` stands for a value.
        values: tensors for the sentence.

    Returns:
        The check, for `tf.control_dependencies`.
    """
    return tf.debugging.Assert(condition, [tf.strings.format(f"tfcorr: {sentence}", values)])


def checked_images(images: tf.Tensor, name: str, limit: int) -> tf.Tensor:
    """Refuses what is no batch of images: (B, H, W, 3), not empty, in [0, 1], of at most `limit` pixels.

    Args:
        images: float32 of any shape.
        name: its name, for the sentences.
        limit: pixels of the whole batch.

    Returns:
        The images, of known rank and channels.
    """
    expected = "expected (batch, height, width, 3)"
    check = require(tf.rank(images) == 4, f"{name} has shape {{}}, {expected}", tf.shape(images))
    with tf.control_dependencies([check]):
        shape = tf.shape(images, out_type=tf.int64)
    check = require(
        tf.logical_and(shape[3] == 3, tf.reduce_min(shape) > 0),
        f"{name} has shape {{}}, {expected} and at least 1x1 pixels",
        shape,
    )
    with tf.control_dependencies([check]):
        check = _within(tf.reduce_prod(shape[:3]), name, limit)
    with tf.control_dependencies([check]):
        low, high = tf.reduce_min(images), tf.reduce_max(images)
    # Both comparisons are false for NaN; the minimum of a batch with a NaN may be another value.
    fine = tf.logical_and(low >= 0.0, high <= 1.0) & tf.logical_not(tf.math.is_nan(tf.reduce_sum(images)))
    check = require(fine, f"{name} has values from {{}} to {{}}, expected values in [0, 1]", low, high)
    with tf.control_dependencies([check]):
        images = tf.identity(images)
    images.set_shape((None, None, None, 3))
    return images


def same_batch(images: tf.Tensor, others: tf.Tensor, name: str, other_name: str) -> tf.Tensor:
    """Refuses batches of different sizes; returns `images`."""
    check = require(
        tf.shape(images)[0] == tf.shape(others)[0],
        f"{name} and {other_name} have batches of {{}} and {{}}, expected the same",
        tf.shape(images)[0],
        tf.shape(others)[0],
    )
    with tf.control_dependencies([check]):
        return tf.identity(images)


def checked_count(contents: tf.Tensor, name: str, limit: int) -> tf.Tensor:
    """Refuses a list of more than `limit` files; returns the list."""
    check = require(
        tf.size(contents) <= limit, f"{name} has {{}} files, expected at most {limit}", tf.size(contents)
    )
    with tf.control_dependencies([check]):
        return tf.identity(contents)


def checked_total(contents: tf.Tensor, name: str, each: str, limit: int) -> tf.Tensor:
    """Refuses files that have more than `limit` pixels together; returns the files.

    Args:
        contents: string (n,), of PNG or JPEG files.
        name, each: of all and of one of them, for the sentences.
        limit: pixels of all images.
    """

    def pixels(content):
        _, size, check = _stated(content, each, limit)
        with tf.control_dependencies([check]):
            return _pixels(size)

    total = tf.reduce_sum(tf.map_fn(pixels, contents, fn_output_signature=tf.int64))
    with tf.control_dependencies([_within(total, name, limit)]):
        return tf.identity(contents)


def decoded(content: tf.Tensor, name: str, limit: int) -> tf.Tensor:
    """Decodes a PNG or JPEG file whose size is within the limit; its size is read before its pixels are.

    Args:
        content: string scalar.
        name: its name, for the sentences.
        limit: pixels of the image.

    Returns:
        float32 (1, H, W, 3), RGB in [0, 1], from 8 bits a channel. Grey and palettes become RGB, transparency
        is dropped, an EXIF orientation is not applied.
    """
    is_jpeg, _, check = _stated(content, name, limit)
    with tf.control_dependencies([check]):
        image = tf.cond(
            is_jpeg,
            lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_png(content, 3),
        )
    image.set_shape((None, None, 3))
    return tf.expand_dims(tf.cast(image, tf.float32) / 255.0, 0)


def _stated(content: tf.Tensor, name: str, limit: int) -> tuple[tf.Tensor, tf.Tensor, tf.Operation]:
    """Whether a file is a JPEG, the size that its header states, and the check of both."""
    is_jpeg = tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.logical_and(
        tf.strings.substr(content, 0, len(_PNG_SIGNATURE)) == _PNG_SIGNATURE,
        tf.strings.length(content) >= _PNG_SHORTEST,
    )
    check = require(tf.logical_or(is_jpeg, is_png), f"{name} is no PNG or JPEG file")
    with tf.control_dependencies([check]):
        content = tf.identity(content)
    size = tf.cond(
        is_jpeg, lambda: tf.io.extract_jpeg_shape(content, tf.int64)[:2], lambda: _png_size(content)
    )
    check = require(
        tf.reduce_min(size) > 0, f"{name} has {{}} pixels (height, width), expected at least 1x1", size
    )
    with tf.control_dependencies([check]):
        return is_jpeg, size, _within(_pixels(size), name, limit)


def _pixels(size: tf.Tensor) -> tf.Tensor:
    """Height times width, int64; of sides beyond 2**31, which no decoder takes, that of 2**31."""
    return tf.reduce_prod(tf.minimum(size, 1 << 31))


def _png_size(content: tf.Tensor) -> tf.Tensor:
    """Height and width that a PNG file's header states, int64 (2,)."""
    stated = tf.io.decode_raw(tf.strings.substr(content, _PNG_SIZE_AT, 8), tf.uint8)
    places = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width_height = tf.reduce_sum(tf.reshape(tf.cast(stated, tf.int64), (2, 4)) * places, axis=1)
    return tf.reverse(width_height, [0])


def _within(pixels: tf.Tensor, name: str, limit: int) -> tf.Operation:
    return require(
        pixels <= limit, f"{name} has {{}} pixels, expected at most {limit}, the limit of this model", pixels
    )
