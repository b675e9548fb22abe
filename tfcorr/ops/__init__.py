"""The two operations that the methods stand on, each compiled (C++) and portable (`keras.ops`).

Importing this package registers the compiled ops with TensorFlow where they have been built, so that a
SavedModel that uses them can be loaded afterwards. Where they are missing nothing fails: the portable
implementation serves, and `implementations()` tells why.
"""

import sys

import keras

from tfcorr.ops.deform_conv import deform_conv2d
from tfcorr.ops.library import implementations, load
from tfcorr.ops.match_patches import Matches, match_patches

__all__ = ["Matches", "deform_conv2d", "implementations", "match_patches"]

# With another backend TensorFlow is not imported for it, unless it is there already.
if keras.backend.backend() == "tensorflow" or "tensorflow" in sys.modules:
    load()
