// The TensorFlow that this library was compiled against, as text in its read-only data.
//
// tfcorr/ops/library.py searches the file for it before anything is loaded: the C++ ABI changes with every
// TensorFlow minor, and loading a library of another one runs its static initialisers (the op
// registrations), which may crash the process instead of reporting an error.

#ifndef TFCORR_TF_VERSION
#error "compile with -DTFCORR_TF_VERSION=<version>, e.g. -DTFCORR_TF_VERSION=2.21.0"
#endif

#define TFCORR_STRING_(x) #x
#define TFCORR_STRING(x) TFCORR_STRING_(x)

extern "C" __attribute__((used, visibility("default"))) const char tfcorr_built_for[] =
    "tfcorr-built-for-tensorflow=" TFCORR_STRING(TFCORR_TF_VERSION) ";";
