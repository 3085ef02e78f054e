"""Keeping the libraries underneath from writing over the display."""

from __future__ import annotations

import os
import warnings


def is_main_process() -> bool:
    """Whether this process tells the story: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def quieten() -> None:
    """Silence progress bars and notices of transformers and TRL that a user of `ctpo` can do nothing about.

    Their errors and our own warnings stay. Call before importing either.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|torch|accelerate)\b")
    if not is_main_process():
        warnings.simplefilter("ignore")  # the main process gives the same ones
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
