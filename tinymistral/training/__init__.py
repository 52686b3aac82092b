"""Training: stories to learn from, the backward pass and the optimizer."""
