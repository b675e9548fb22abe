// Tells which instruction set's kernels serve in this process; tfcorr/ops/library.py asks by ctypes.
#include "isa.h"

extern "C" __attribute__((used, visibility("default"))) const char* tfcorr_instruction_set() {
  return tfcorr::NameOf(tfcorr::SelectIsa());
}
