"""What the trainers of both methods share: optimiser, checkpoints, callbacks and the loop around `fit`."""
