"""The version of the package. `pyproject.toml` reads it from here, so it is written down once."""

__version__ = "0.1.0.dev0"
