"""What `ctpo train` prints: one line per rollout batch, and on a terminal also a live line below them."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from ctpo.errors import printable
from ctpo.runs.scores import score_name

if TYPE_CHECKING:
    from ctpo.engines.verl.run import Finished
    from ctpo.runs.directory import RunDirectory
    from ctpo.training.records.events import RunPlan
    from ctpo.training.run.train import Outcome

_COLUMNS: Final[tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...]] = (
    ("batch", 5, lambda r: f"{r['batch']}"),
    ("updates", 7, lambda r: f"{r['step']}"),
    ("reward", 6, lambda r: figure(r, "reward", "{:.3f}")),
    ("held-out", 13, lambda r: _accuracy(r)),
    ("clip %", 6, lambda r: figure(r, "clip_fraction", "{:.1f}", 100)),
    ("log ratio mean±std", 18, lambda r: _spread(r)),
    ("calls", 5, lambda r: figure(r, "tool_calls", "{:.0f}")),
    ("tok/s", 6, lambda r: figure(r, "tokens_per_s", "{:.0f}")),
    ("time", 6, lambda r: clock(r["seconds"])),
    ("left", 6, lambda r: clock(r["left"]) if "left" in r else ""),
)
"""The columns of the table: heading, width, and a function from a record to the text of its cell."""


class _Console(Console):
    """A console that shows no control characters of what others wrote.

    It goes silent when its reader leaves, as in `ctpo train | head`. The run goes on.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # The flush at the end of the program must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """A `Listener` that prints what a run reports."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress
        self._task: TaskID | None = None
        self._plan: RunPlan | None = None
        self._started = time.perf_counter()
        self._earlier: float = 0.0

    def stage(self, what: str) -> None:
        if self._progress is None:
            self._console.print(f"[dim]{what} …[/dim]")
        else:
            self._live(f"{what} …")

    def notice(self, what: str) -> None:
        self._console.print(f"[yellow]{escape(what)}[/yellow]", highlight=False)

    def started(self, plan: RunPlan) -> None:
        self._plan = plan
        self._started = time.perf_counter()
        self._console.print(
            f"[bold]{escape(plan.objective)}[/bold] on [bold]{escape(plan.task)}[/bold], model {escape(plan.model)} "
            f"({plan.parameters:,} parameters), seed {plan.seed}: {plan.rollout_batches} rollout batches of "
            f"{plan.responses_per_batch} responses, {plan.updates_per_batch} updates each",
            highlight=False,
        )
        self._console.print(f"[dim]records in {escape(str(plan.output))}[/dim]", highlight=False)
        if plan.left_out:
            self._console.print(
                f"{plan.left_out} training prompts are too long and are left out", highlight=False
            )
        self._console.print(
            "[bold]" + "  ".join(f"{name:>{width}}" for name, width, _ in _COLUMNS) + "[/bold]"
        )

    def progressed(self, batch: int, updates: int) -> None:
        if self._plan is not None:
            done = (batch - 1) * self._plan.updates_per_batch + updates
            self._live(f"batch {batch}: update {updates}/{self._plan.updates_per_batch}", done)

    def recorded(self, record: dict[str, Any]) -> None:
        if record.get("skipped_updates"):
            self.notice(f"batch {record['batch']}: {record['skipped_updates']} updates skipped as not finite")
        left = self._left(record)
        row = {**record, **({} if left is None else {"left": left})}
        cells = "  ".join(f"{cell(row):>{width}}" for _, width, cell in _COLUMNS)
        style = "cyan" if "heldout_pass@1" in record else ""
        self._console.print(cells, style=style, highlight=False)
        if self._plan is not None and record["batch"] < self._plan.rollout_batches:
            self._live(f"batch {record['batch'] + 1}: sampling {self._plan.responses_per_batch} responses")

    def finished(self, outcome: Outcome | Finished) -> None:
        """Print the result: accuracy before and after, what was saved, and what to try next."""
        if self._progress is not None:
            self._progress.stop()
        if outcome.finished and outcome.summary is None:
            return  # the main process prints the result
        if outcome.summary is None:
            self._console.print(
                "\nInterrupted; a checkpoint is saved. Continue with:\n"
                f"  ctpo train --resume {_quoted(outcome.run.path)}{trust(outcome.run)}",
                markup=False,
                highlight=False,
            )
            return
        self._console.print(_before_after(outcome.summary))
        for line in _example(outcome.run, outcome.summary["rollout_batches"]):
            self._console.print(line, markup=False, highlight=False)
        self._console.print(_what_next(outcome), markup=False, highlight=False)

    def _live(self, text: str, completed: int | None = None) -> None:
        if self._progress is None:
            return
        total = self._plan.rollout_batches * self._plan.updates_per_batch if self._plan else None
        if self._task is None:
            self._task = self._progress.add_task(text, total=total)
        self._progress.update(self._task, description=text, total=total, completed=completed)

    def _left(self, record: Mapping[str, Any]) -> float | None:
        """Seconds until the last batch, if the others take as long as those of this process did."""
        batch: int = record["batch"]
        if self._plan is None or batch <= self._plan.start_batch:
            return None
        elapsed, batches = time.perf_counter() - self._started, batch - self._plan.start_batch
        if batches == 1:
            # A resumed run may begin within a batch, of which an earlier process did a part.
            self._earlier = max(0.0, record.get("batch_s", 0.0) - elapsed)
        return (elapsed + self._earlier) / batches * (self._plan.rollout_batches - batch)


def open_console(*, shown: bool = True, file: IO[str] | None = None) -> Console:
    """A console on standard output; with `shown` off, for a process that is not the main one, it prints nothing."""
    return _Console(soft_wrap=True, quiet=not shown, file=file)


@contextmanager
def open_display(*, shown: bool = True, apart: bool = False) -> Iterator[Display]:
    """A display on standard output. With `shown` off, for a process that is not the main one, it prints nothing.

    With `apart` it keeps the place where standard output leads now, while other code redirects that.
    """
    with ExitStack() as stack:
        file = stack.enter_context(os.fdopen(os.dup(1), "w")) if apart else None
        yield stack.enter_context(_display(open_console(shown=shown, file=file), shown=shown))


@contextmanager
def _display(console: Console, *, shown: bool) -> Iterator[Display]:
    if not console.is_terminal or not shown:
        yield Display(console, None)
        return
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console, transient=True
    )
    with progress:
        yield Display(console, progress)


def _before_after(summary: dict[str, Any]) -> Table:
    before, after = summary["before"], summary["after"]
    same = before["problems"] == after["problems"]
    count = f" ({after['problems']})" if same else ""
    table = Table(title=f"Held-out problems{count}, one sampled response per problem")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        f"{score_name((before, after))} ± standard error",
        *(f"{e['pass@1']:.3f} ± {e['stderr']:.3f}" for e in (before, after)),
    )
    if not same:
        table.add_row("problems", *(str(e["problems"]) for e in (before, after)))
        if "gain" in after:
            table.add_row(f"gain over the same {before['problems']} problems", "", f"{after['gain']:+.3f}")
    table.add_row("tool calls per response", *(f"{e['tool_calls']:.2f}" for e in (before, after)))
    table.add_row("tokens per response", *(f"{e['tokens']:.1f}" for e in (before, after)))
    table.add_row("ended by the model", *(f"{e['finished']:.1%}" for e in (before, after)))
    return table


def _example(run: RunDirectory, last: int) -> list[str]:
    """Two responses to one problem, as lines: a wrong one before training and a right one after it.

    There are no lines if no problem has both.
    """
    pairs = zip(run.read_transcripts(0), run.read_transcripts(last), strict=False)
    for before, after in pairs:
        if after.get("correct") and not before.get("correct"):
            return [
                f"before  {before.get('prompt')}{before.get('completion')}   (wrong)",
                f"after   {after.get('prompt')}{after.get('completion')}   (right)",
                "",
            ]
    return []


def _what_next(outcome: Outcome | Finished) -> str:
    assert outcome.summary is not None
    run, seconds = outcome.run, outcome.summary["wall_clock_s"]
    return (
        f"{clock(seconds)} in all, from the first import on. Saved in {run.path}:\n"
        f"  {run.model.name}/ (load it with transformers)  {run.curve.name}  {run.metrics.name}  "
        f"{run.summary.name}  transcripts/  {run.config.name}\n"
        "Next:\n"
        f"  ctpo eval {_quoted(run.path)}{trust(run)}\n"
        f"  ctpo report {_quoted(run.path)}\n"
        "  ctpo train objective=grpo            the same with the token ratio\n"
        "  ctpo train --help                    your own model, data and settings"
    )


def trust(run: RunDirectory) -> str:
    """The option without which a command refuses a run that names code; whoever trained with the code trusts it."""
    from ctpo.training.config.trust import names_code

    return " --trust" if names_code(run.read_recipe()) else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def figure(record: Mapping[str, Any], name: str, form: str, scale: float = 1.0) -> str:
    value = record.get(name)
    return "" if value is None else form.format(scale * value)


def _accuracy(record: dict[str, Any]) -> str:
    if "heldout_pass@1" not in record:
        return ""
    return f"{record['heldout_pass@1']:.3f}±{record['heldout_stderr']:.3f}"


def _spread(record: dict[str, Any]) -> str:
    if record.get("log_ratio_mean") is None:
        return ""
    return f"{record['log_ratio_mean']:+.3f}±{record['log_ratio_std']:.3f}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
