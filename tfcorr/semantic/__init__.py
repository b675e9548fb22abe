"""Semantic matching: probabilistic model distillation (PMD, Li et al., CVPR 2021), in the paper's order."""
