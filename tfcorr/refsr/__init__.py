"""Reference-based super-resolution: C2-Matching (Jiang et al., CVPR 2021), in the paper's order."""

#: How many times longer the sides of a result are; the published networks know this factor alone.
SCALE = 4
