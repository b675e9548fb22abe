// What the arguments of match_patches must be like. Shared by the ops for CPU and GPU and by the stand-alone tests: it
// knows nothing of TensorFlow.
#ifndef TFCORR_CUSTOM_OPS_MATCH_PATCHES_GEOMETRY_H_
#define TFCORR_CUSTOM_OPS_MATCH_PATCHES_GEOMETRY_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tfcorr {

// Added to every patch norm, so that an all-zero patch scores 0.
constexpr float kNormEpsilon = 1e-5f;

// "" if the maps fit together and the patch size, else what would have been expected. Nothing in it overflows.
inline std::string MatchMisfit(const std::vector<int64_t>& query, const std::vector<int64_t>& reference,
                               int64_t patch_size) {
  if (patch_size < 1) return "a patch_size of at least 1";
  if (query.size() != 4 || reference.size() != 4) return "two maps (batch, height, width, channels)";
  if (query[0] != reference[0]) return "the same batch in both maps";
  if (query[3] != reference[3]) return "the same channels in both maps";
  if (query[3] == 0) return "at least one channel";
  for (int axis = 1; axis <= 2; ++axis) {
    if (query[axis] < patch_size || reference[axis] < patch_size) return "maps of at least patch_size on each side";
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (const std::vector<int64_t>& map : {query, reference}) {
    // Of the query, too: there the numbers are those of the outputs, and such a map may have no values at all.
    if (map[1] - patch_size + 1 > kMost / (map[2] - patch_size + 1)) {
      return "fewer patches than 2^31 in each map, so that an int32 can count them";
    }
  }
  return "";
}

}  // namespace tfcorr

#endif  // TFCORR_CUSTOM_OPS_MATCH_PATCHES_GEOMETRY_H_
