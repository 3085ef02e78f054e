"""Stopping a run cleanly on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopCleanly(TrainerCallback):  # type: ignore[misc]
    """On the first interrupt, finishes the current optimizer step, saves a checkpoint and stops.

    Args:
        agree: turns this process's wish to stop into a decision of all processes. A signal may reach one process
            only, or reach each at another step, and a process that stops alone leaves the others waiting.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool) -> None:
        self.asked = False
        self._agree = agree

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._agree(self.asked) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Set `asked` on SIGINT or SIGTERM. A second signal of the same kind interrupts at once.

        A launcher passes Ctrl-C on as SIGTERM, to processes that have already received it from the terminal as SIGINT.

        Outside of the main thread this does nothing, because Python handles signals in the main thread alone. There
        they are the affair of whoever started the thread, such as Ray Train or a notebook.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
