"""The two operations that the methods stand on, each compiled (C++) and portable (`keras.ops`).

Importing this package registers the compiled ops with TensorFlow where they have been built, so that a
SavedModel that uses them can be loaded afterwards. Where they are missing nothing fails: the portable
implementation serves, and `implementations()` tells why.
"""

from tfcorr.ops.library import implementations, load

load()
