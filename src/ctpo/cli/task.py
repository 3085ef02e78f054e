"""`ctpo task check`: try a task before training on it."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Final

from ctpo.cli.table import table
from ctpo.errors import UserError, one_line, printable
from ctpo.tasks import Problem, Task, get_task
from ctpo.tasks.calls import PYTHON_SCHEMA
from ctpo.tasks.prompts import Prompt, prompt_text
from ctpo.tasks.task import as_conversation
from ctpo.tasks.trial import Trial, try_task

_DESCRIPTION: Final = """\
Try a task before training on it. Problems of both splits are drawn and compared. The check, the reward and `extract`
run on odd completions (empty, very long, zero bytes, only a tool call, …), on the reference answers, which must be
right, and on answers to other problems, which should be wrong. One prompt is shown as the model gets it.

TASK is a name, a file or a generator, as for ctpo eval: mine.py, gsm8k@PATH, FILE.jsonl, reasoning_gym:NAME.

The exit code is 0 if all is well, 1 with findings, and 2 if the task cannot be tried.
"""
_EPILOG: Final = """\
examples:
  ctpo task check mine.py
  ctpo task check train.jsonl --model Qwen/Qwen3-1.7B      (lengths in tokens, and the chat template's rendering)
"""
_MOST_LINES, _LONGEST_LINE = 16, 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo task`."""
    parser.description = "Look at a task."
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="draw problems, and try the check on odd completions",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    check.add_argument("task", metavar="TASK")
    check.add_argument("--model", metavar="MODEL", help="render a prompt and count tokens with its tokenizer")
    check.add_argument(
        "--problems", type=int, default=64, metavar="N", help="problems per split (default 64)"
    )
    check.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw (default 0)")


def run(args: argparse.Namespace) -> int:
    """Try the task and print what came of it. Return 0 if all is well, and 1 with findings."""
    if args.problems < 1:
        raise UserError(f"--problems {args.problems} is too small; use at least 1")
    task = get_task(args.task)
    trial = try_task(task, args.problems, args.seed)
    problems = [problem for draw in trial.draws.values() for problem in draw.problems]
    task = as_conversation(task, problems)
    opening = _opening(task, problems[0])
    render: Callable[[Task, Prompt], str] = _by_messages
    length: Callable[[Task, Prompt], int] | None = None
    if args.model is not None:
        render, length = _by_model(args.model)
    print(f"task {one_line(task.name)}: {_kind(task)}\n")
    print(_splits(trial, None if length is None else lambda problem: length(task, problem.prompt)))
    for draw in trial.draws.values():
        if draw.missing is not None:
            print(one_line(draw.missing))
    print(f"\nproblem {one_line(problems[0].id)}, as the model gets it:")
    print(_indented(render(task, opening)))
    print(f"its reference answer: {one_line(repr(problems[0].answer), _LONGEST_LINE)}")
    for schema in _schemas(task):
        print(f"tool: {one_line(schema, 2 * _LONGEST_LINE)}")
    print()
    for sentence in trial.passed:
        print(f"  ok  {one_line(sentence)}")
    for sentence in trial.findings:
        print(f"  !!  {one_line(sentence)}")
    print("\nall is well" if not trial.findings else f"\nfindings: {len(trial.findings)}")
    return 1 if trial.findings else 0


def _kind(task: Task) -> str:
    form = "conversations in the model's chat template" if task.conversational else "bare prompts"
    tools = [tool.name if hasattr(tool, "name") else "Python" for tool in task.all_tools]
    return f"{form}, " + (f"tools: {', '.join(tools)}" if tools else "no tool")


def _splits(trial: Trial, tokens: Callable[[Problem], int] | None) -> str:
    rows = []
    for split, draw in trial.draws.items():
        row = [split, str(len(draw.problems)), f"{draw.seconds:.2f}"]
        if draw.problems:
            row.append(_spread([len(prompt_text(each.prompt)) for each in draw.problems]))
            row.append(_spread([len(each.answer) for each in draw.problems]))
            if tokens is not None:
                row.append(_spread([tokens(each) for each in draw.problems]))
        rows.append(row)
    head = ["split", "problems", "seconds", "prompt, characters", "answer, characters"]
    return table([*head, *([] if tokens is None else ["prompt, tokens"])], rows)


def _spread(lengths: Sequence[int]) -> str:
    """The least, the middle and the greatest."""
    return f"{min(lengths):,} · {statistics.median_low(lengths):,} · {max(lengths):,}"


def _opening(task: Task, problem: Problem) -> Prompt:
    """The prompt of a problem, or the messages with which its environment begins."""
    if task.environment is None:
        return problem.prompt
    from ctpo.cli.quiet import quieten
    from ctpo.extras import require

    require("ctpo task check with an environment", "train", "transformers")
    quieten()
    from ctpo.rollout.environments import open_environments

    with open_environments(task, None) as environments:
        assert environments is not None
        (opening,) = environments.reset([problem])
    if len(opening) == 1 and opening[0]["role"] == "user":
        return str(opening[0]["content"])
    return tuple(opening) or problem.prompt


def _by_messages(task: Task, prompt: Prompt) -> str:
    if not task.conversational:
        return prompt_text(prompt)
    return "\n".join(f"{each['role']}: {each['content']}" for each in task.messages(prompt))


def _by_model(location: str) -> tuple[Callable[[Task, Prompt], str], Callable[[Task, Prompt], int]]:
    """Functions that render a prompt with a model's chat template, and count its tokens."""
    from ctpo.cli.quiet import quieten
    from ctpo.extras import require

    require("ctpo task check --model", "train", "transformers")
    quieten()
    from ctpo.evaluation.model import load_tokenizer
    from ctpo.rollout.chat import encode_prompt
    from ctpo.tasks.arithmetic import model_location

    tokenizer, _ = load_tokenizer(model_location(location))

    def render(task: Task, prompt: Prompt) -> str:
        return str(tokenizer.decode(encode_prompt(tokenizer, task, prompt)))

    return render, lambda task, prompt: len(encode_prompt(tokenizer, task, prompt))


def _schemas(task: Task) -> list[str]:
    """One line per tool: its schema. The Python tool has one only in calls of the model's template."""
    lines = [json.dumps(tool.schema["function"], ensure_ascii=False) for tool in task.functions]
    tool = task.tool
    if tool is None:
        return lines
    if tool.style in ("auto", "native"):
        lines.insert(0, json.dumps(PYTHON_SCHEMA["function"], ensure_ascii=False))
    if tool.style != "native":
        lines.insert(0, f"Python programs between {tool.open!r} and {tool.close!r}")
    return lines


def _indented(text: str) -> str:
    lines = printable(text).split("\n")
    more = [f"… {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
    return "\n".join(f"  {one_line(line, _LONGEST_LINE)}" for line in [*lines[:_MOST_LINES], *more])
