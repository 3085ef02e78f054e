"""Evaluating one model on several tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctpo.evaluation.against import Against
from ctpo.evaluation.identity import judged_with, model_identity, sampled_with
from ctpo.evaluation.judged import JudgedResponse
from ctpo.evaluation.metrics import average
from ctpo.evaluation.model import HELDOUT_SEED, SMALL, choose_device, in_fastest_dtype, load_model
from ctpo.evaluation.sampled import sample_task, summarise
from ctpo.evaluation.stored import Folder, Identity, update
from ctpo.rollout import Endpoint, EndpointEngine, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import open_tools
from ctpo.runs.atomic import write_json
from ctpo.tasks import Problem, Task
from ctpo.tasks.sources import DatasetSource
from ctpo.tasks.task import as_conversation, check_ready

DRAWN = 1024
"""How many problems are drawn without a limit, if the task generates its problems."""
_CONVERSATION_TOKENS, _BARE_PROMPT_TOKENS = (
    1024,
    96,
)  # the longest responses, unless `max_tokens` says otherwise


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to evaluate and how. None leaves the choice to the task or the machine."""

    tasks: Mapping[str, Task]
    """The tasks by the names under which they were requested."""
    model: str
    """A directory, a hub id, or `smollm2`. With an endpoint: the name under which the server has the model."""
    endpoint: str | None = None
    """The base URL of an OpenAI-compatible server that has the model. None loads the model here."""
    api_key: str | None = None
    concurrency: int = 32
    """How many requests to the endpoint run at the same time."""
    request_timeout_s: float = 1200.0
    samples: int = 1
    limit: int | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = HELDOUT_SEED
    rows_at_once: int | None = None
    dtype: str | None = None
    unsafe_no_isolation: bool = False

    def sampling(self, task: Task) -> Sampling:
        """How responses of a task are drawn."""
        default_tokens = _CONVERSATION_TOKENS if task.conversational else _BARE_PROMPT_TOKENS
        return Sampling(
            max_new_tokens=self.max_tokens or default_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def problems(self, task: Task) -> list[Problem]:
        """The held-out problems; without a limit, all problems of a dataset."""
        everything = 10**9 if isinstance(task.problems, DatasetSource) else DRAWN
        return task.problems("test", self.limit or everything, self.seed)

    def functions(self) -> list[str]:
        """The names of the functions that the model may call in any of the tasks."""
        return sorted({tool.name for task in self.tasks.values() for tool in task.functions})

    def settings(self) -> dict[str, Any]:
        """The settings that the figures are saved with."""
        # A server at another URL, or with another pace of requests, still has the same model. How many responses are
        # decoded at once changes no random number.
        pace = ("concurrency", "request_timeout_s", "rows_at_once")
        left_out = ("tasks", "unsafe_no_isolation", "endpoint", "api_key", *pace)
        return {
            "tasks": list(self.tasks),
            **{name: value for name, value in vars(self).items() if name not in left_out},
            **({} if self.endpoint is None else {"served": True}),
            **({"tools": self.functions()} if self.functions() else {}),
        }


def run_suite(
    suite: Suite,
    *,
    output: Path | None = None,
    against: Against | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, list[JudgedResponse]]]:
    """The figures (settings, one entry per task, and the average) and the responses of every task.

    Args:
        output: a folder to which the responses are saved as they come, and the figures as `eval.json`. Responses that
            an earlier evaluation saved there are kept as far as they still hold (`ctpo.evaluation.stored`).
        against: another evaluation. The figures of each task then say under `against` how much better this one is.
        progress: called with a task's name, how many of its problems are done, and how many it has.
        notice: called with a sentence about stored responses that are dropped or judged anew.

    Raises:
        UserError: if the model or a task's problems cannot be loaded, or `output` holds another evaluation.
    """
    folder = None if output is None else Folder(output)
    if folder is not None:
        folder.make()
        folder.read()  # raises now what would otherwise fail after the model has loaded
    problems = {name: suite.problems(task) for name, task in suite.tasks.items()}
    suite = replace(
        suite, tasks={name: as_conversation(task, problems[name]) for name, task in suite.tasks.items()}
    )
    for task in suite.tasks.values():
        check_ready(task)
    if against is not None:
        for sentence in against.check(suite.tasks, problems):
            notice(sentence)
    engine, at_once = _engine(suite)
    if folder is not None:
        for sentence in update(folder, suite.tasks, problems, _identities(suite, engine)):
            notice(sentence)
    results: dict[str, Any] = {}
    responses: dict[str, list[JudgedResponse]] = {}
    for name, task in suite.tasks.items():
        started = time.perf_counter()
        with open_tools(task, unsafe_no_isolation=suite.unsafe_no_isolation) as tools:
            responses[name] = sample_task(
                engine,
                task,
                problems[name],
                suite.sampling(task),
                samples=suite.samples,
                rows_at_once=at_once,
                tools=tools,
                seed=suite.seed,
                saved=None if folder is None else folder.transcripts(name, len(suite.tasks)),
                progress=lambda done, name=name: progress(name, done, len(problems[name])),  # type: ignore[misc]
            )
        seconds = round(time.perf_counter() - started, 1)
        results[name] = {**summarise(task, responses[name], suite.samples), "seconds": seconds}
        if against is not None:
            results[name]["against"] = against.difference(name, responses[name], suite.samples)
    if isinstance(engine, EndpointEngine):
        engine.endpoint.close()
    figures = {
        **suite.settings(),
        "endpoint": suite.endpoint,
        "results": results,
        **average(results, suite.samples),
    }
    if folder is not None:
        write_json(folder.figures, figures)
    return figures, responses


def _engine(suite: Suite) -> tuple[TransformersEngine | EndpointEngine, int]:
    """The engine, and how many responses make one block."""
    if suite.endpoint is not None:
        endpoint = Endpoint(
            suite.endpoint,
            suite.model,
            api_key=suite.api_key,
            timeout_s=suite.request_timeout_s,
            concurrency=suite.concurrency,
        )
        endpoint.check()
        return EndpointEngine(endpoint), suite.rows_at_once or 8 * suite.concurrency
    device, dtype = choose_device()
    model, tokenizer = load_model(suite.model, dtype=suite.dtype or dtype, device=device)
    if suite.dtype is None:
        model = in_fastest_dtype(model)
    at_once = 1024 if model.num_parameters() < SMALL else 32
    return TransformersEngine(model, tokenizer), suite.rows_at_once or at_once


def _identities(suite: Suite, engine: TransformersEngine | EndpointEngine) -> dict[str, Identity]:
    """What each task's responses are bound to."""
    if isinstance(engine, EndpointEngine):
        model = {"endpoint": engine.endpoint.url, "model": suite.model}
    else:
        model = model_identity(suite.model)
    own = {"samples": suite.samples, "seed": suite.seed, "dtype": suite.dtype}
    return {
        name: Identity(
            sampled=sampled_with(task, suite.sampling(task), model, **own), judged=judged_with(task)
        )
        for name, task in suite.tasks.items()
    }
