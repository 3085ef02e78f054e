"""Any problem generator of the package `reasoning-gym` as a task."""

from __future__ import annotations

import atexit
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.tasks.judge import Judge
from ctpo.tasks.math.answers import final_answer, tagged_answer
from ctpo.tasks.prompts import HOW_TO_CALL
from ctpo.tasks.splits import digest, held_out
from ctpo.tasks.task import Problem, Task, validate_request
from ctpo.tasks.tool import CHAT_TOOL

if TYPE_CHECKING:
    from ctpo.sandbox import Sandbox, SandboxResult

_SYSTEM = (
    f"Solve the problem step by step. {HOW_TO_CALL} Give the final answer between <answer> and </answer>."
)
RIGHT = 1.0
"""An answer is right if reasoning-gym's own judge gives it at least this score. It also gives lower scores for answers
that are partly right."""
_TRIES = 20  # draws per problem: half of them or more belong to the other split or were drawn before
_LIMIT_S = 5.0
_USUAL_S = 1.0  # more than a judge needs on a busy machine
_WASTE_S = 10.0
_MEMORY_MB = 1024
_CLOSED = Path(__file__).with_name("closed_judge.py").read_text(encoding="utf-8")
_CALL = """
def _whole(value):
    if "__tuple__" in value:
        return tuple(value["__tuple__"])
    return dict(value["__items__"]) if "__items__" in value else value
_call = json.loads({call!r}, object_hook=_whole)
print("\\n" + str(score(*_call)))
"""


class Generator:
    """The problems of one reasoning-gym generator.

    The generator's judge needs its whole entry and not an answer alone. So a problem's `answer` is the entry as JSON.

    Raises:
        UserError: if reasoning-gym is not installed or has no such generator.
    """

    def __init__(self, name: str) -> None:
        require(f"task reasoning_gym:{name}", "reasoning-gym", "reasoning_gym")
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)[:5]
            raise UserError(f"reasoning_gym has no generator {name!r}; use for example {', '.join(near)}")
        self.name = name

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """Distinct questions; a hash of the question decides its split. They are fewer if the generator has no more.

        Raises:
            UserError: if the generator makes no problems by itself.
            ValueError: if the split is unknown or the count is negative.
        """
        validate_request(split, count)
        import reasoning_gym

        try:
            draws = reasoning_gym.create_dataset(self.name, size=_TRIES * (count + 10), seed=seed)
        except Exception as error:  # `composite` needs other generators, and a later version may need more
            raise UserError(
                f"reasoning_gym:{self.name} makes no problems by itself: {error}; use another"
            ) from None
        chosen: dict[str, Problem] = {}
        for entry in draws:
            if len(chosen) == count:
                break
            question = entry["question"]
            if held_out(question) == (split == "test"):
                name = f"{self.name}-{digest(question)[:16]}"
                chosen.setdefault(question, Problem(prompt=question, answer=_dumped(entry), id=name))
        return list(chosen.values())


class GeneratorJudge(Judge):
    """The generator's own judge. It runs in a sandbox, and without what evaluates the model's answer as Python."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def require(self) -> None:
        """Start the sandbox.

        Raises:
            UserError: if programs cannot be isolated here.
        """
        _sandbox(self.name)

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        given = [extract(completion) for completion, _ in pairs]
        verdicts: list[str | None] = []
        programs = []
        for text, (_, answer) in zip(given, pairs, strict=True):
            entry = json.loads(answer)
            if text is None:
                verdicts.append("no answer")
            elif text == entry["answer"]:
                verdicts.append("right")
            else:
                verdicts.append(None)
                programs.append(judging_program(self.name, text, entry))
        rest = iter(_run(_sandbox(self.name), programs) if programs else [])
        return [next(rest) if verdict is None else verdict for verdict in verdicts]


def judging_program(name: str, given: str, entry: dict[str, Any]) -> str:
    """The program that prints the score of the given answer, for a sandbox that has imported reasoning-gym."""
    return _CLOSED + _CALL.format(call=json.dumps([name, given, entry]))


def _run(sandbox: Sandbox, programs: Sequence[str]) -> list[str]:
    """The verdicts that the programs print.

    Each program may take `_USUAL_S`, and longer if there are few. Programs that do not end may waste `_WASTE_S` in all.
    After that, a program may take twice as long as those that ended.
    """
    verdicts: list[str] = []
    wasted, slowest = 0.0, 0.05
    step = 2 * sandbox.workers
    for start in range(0, len(programs), step):
        share = (_WASTE_S - wasted) * sandbox.workers / (len(programs) - start)
        allowed = min(_LIMIT_S, max(share, _USUAL_S)) if wasted < _WASTE_S else min(_USUAL_S, 2 * slowest)
        for result in sandbox.run(programs[start : start + step], timeout_s=allowed):
            if result.status == "timeout":
                wasted += allowed / sandbox.workers
            elif result.status == "ok":
                slowest = max(slowest, result.wall_s)
            verdicts.append(_verdict(result))
    return verdicts


def _verdict(result: SandboxResult) -> str:
    if result.status != "ok":  # judges parse the model's text, and not all of them expect odd text
        return "timeout" if result.status == "timeout" else "unparsable"
    return "right" if _score(result.stdout) >= RIGHT else "wrong"


def extract(completion: str) -> str | None:
    """The text between the last answer tags; without tags, the final answer as in mathematics, or None."""
    tagged = tagged_answer(completion)
    return final_answer(completion) if tagged is None else tagged.strip()


def generated_task(name: str) -> Task:
    """The task of a reasoning-gym generator.

    Raises:
        UserError: if the package or the generator is missing.
    """
    return Task(
        name=f"reasoning_gym-{name}",
        problems=Generator(name).problems,
        check=GeneratorJudge(name),
        tool=CHAT_TOOL,
        system=_SYSTEM,
        extract=extract,
    )


def _dumped(entry: dict[str, Any]) -> str:
    return json.dumps(_marked(entry), default=str, ensure_ascii=False)


def _marked(value: Any) -> Any:
    """The value with marks on tuples and on non-string keys: JSON would change them, and judges compare them."""
    if isinstance(value, tuple):
        return {"__tuple__": [_marked(each) for each in value]}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, str) for key in value):
        return {key: _marked(each) for key, each in value.items()}
    return {"__items__": [[_marked(key), _marked(each)] for key, each in value.items()]}


def _score(printed: str) -> float:
    try:
        return float(printed.split()[-1])
    except (ValueError, IndexError):
        return 0.0


_shared: tuple[int, Sandbox] | None = None


def _sandbox(name: str) -> Sandbox:
    """The sandbox in which this process judges, with reasoning-gym imported. The first call makes it."""
    global _shared
    if _shared is None or _shared[0] != os.getpid():  # after a fork, the parent's sandbox cannot be used
        from ctpo.sandbox import Sandbox, SandboxUnavailable

        try:
            sandbox = Sandbox(timeout_s=_LIMIT_S, memory_mb=_MEMORY_MB, preload=["reasoning_gym", "sympy"])
        except SandboxUnavailable as error:
            raise UserError(
                f"task reasoning_gym:{name}: its judge may run in isolation only; "
                f"{str(error).partition('. ')[0]}"
            ) from None
        atexit.register(sandbox.close)
        _shared = os.getpid(), sandbox
    return _shared[1]
