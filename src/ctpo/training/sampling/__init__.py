"""Rollouts during training: sampling, rewards, and which responses and prompts are left out."""
