"""Speed and memory of tfcorr, measured beside what else does the same work: `tfcorr bench`."""
