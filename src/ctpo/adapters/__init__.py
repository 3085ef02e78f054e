"""The objectives as losses of other trainers: verl, SkyRL, prime-rl, slime, miles, Tinker and NeMo-RL.

There is one module for each trainer. It imports the trainer when it is used.
docs/how-to/adapters.md shows the settings.
"""
