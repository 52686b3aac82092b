"""Training: stories, the backward pass, the optimizer, and the loop over steps."""
