"""Keeping the libraries underneath from writing over the display."""

from __future__ import annotations

import os
import warnings


def quieten() -> None:
    """Silence progress bars and notices of transformers and TRL that a user of `ctpo` can do nothing about.

    Their errors and our own warnings stay. Call before importing either.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|torch|accelerate)\b")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
