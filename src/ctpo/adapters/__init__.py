"""The objectives inside other people's trainers; each module imports its own trainer, when it is used.

`ctpo.adapters.verl`, `.skyrl`, `.prime_rl`, `.slime`, `.miles`, `.tinker`, `.nemo_rl`: see docs/adapters.md.
"""
