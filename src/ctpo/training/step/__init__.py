"""One training step: the trainer, its minibatches, guards and checkpoints."""
