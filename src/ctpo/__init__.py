"""Off-policy reinforcement learning for language models with cumulative-token importance ratios."""

__version__ = "0.1.0.dev0"
