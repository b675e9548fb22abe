"""Reference-based super-resolution: C2-Matching (Jiang et al., CVPR 2021), in the paper's order."""
