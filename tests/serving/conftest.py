"""A SavedModel with the signatures of an export, cheap to make and to run, and a server for it."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Folder of a SavedModel that enlarges by repetition and adds a hundredth of the reference's mean.

    It has the names, types and refusals of a real export, so the protocol is tested without a network's time.
    """
    pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")
    import tensorflow as tf

    def enlarged(lr, reference):
        lr = tf.repeat(tf.repeat(lr, 4, axis=1), 4, axis=2)
        return lr * 0.98 + 0.01 * tf.reduce_mean(reference, axis=(1, 2, 3), keepdims=True)

    class StandIn(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None, None, 3), tf.float32, "lr"),
                tf.TensorSpec((None, None, None, 3), tf.float32, "reference"),
            ]
        )
        def arrays(self, lr, reference):
            small = tf.debugging.Assert(
                tf.reduce_prod(tf.shape(lr)[1:3]) <= 10_000,
                ["tfcorr: the image has more than 10000 pixels"],
            )
            with tf.control_dependencies([small]):
                return {"image": enlarged(lr, reference)}

        @tf.function(
            input_signature=[
                tf.TensorSpec((), tf.string, "image"),
                tf.TensorSpec((None,), tf.string, "references"),
            ]
        )
        def encoded(self, image, references):
            def decoded(content):
                return tf.cast(tf.io.decode_image(content, 3, expand_animations=False), tf.float32) / 255

            lr = tf.ensure_shape(decoded(image), (None, None, 3))
            means = tf.map_fn(
                lambda r: tf.reduce_mean(decoded(r)), references, fn_output_signature=tf.float32
            )
            result = enlarged(lr[None], tf.reshape(tf.reduce_mean(means), (1, 1, 1, 1)))[0]
            return {"png_bytes": tf.io.encode_png(tf.cast(tf.round(result * 255), tf.uint8))}

    module = StandIn()
    folder = tmp_path_factory.mktemp("stand_in") / "1"
    tf.saved_model.save(module, str(folder), {"serving_default": module.arrays, "from_bytes": module.encoded})
    return folder


@pytest.fixture(scope="session")
def stand_in_model(stand_in):
    from serving.server import Model

    return Model(stand_in)


@pytest.fixture
def server(stand_in_model):
    """A running server for one test, without faults left over from another."""
    from serving.server import Server

    stand_in_model.faults.clear()
    stand_in_model.calls.clear()
    with Server(stand_in_model) as running:
        yield running


def expected(image: np.ndarray, *references: np.ndarray) -> np.ndarray:
    """What the stand-in computes, in NumPy, for images in [0, 1]."""
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    return large * 0.98 + 0.01 * np.mean([reference.mean() for reference in references])
