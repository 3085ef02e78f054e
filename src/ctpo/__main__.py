"""Runs the command line for `python -m ctpo` and `torchrun ... -m ctpo`."""

from __future__ import annotations

import sys

from ctpo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
