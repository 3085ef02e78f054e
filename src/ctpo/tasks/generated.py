"""Any generator of the package `reasoning-gym` as a task."""

from __future__ import annotations

import atexit
import difflib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.tasks.judge import Judge
from ctpo.tasks.math.answers import final_answer
from ctpo.tasks.splits import digest, held_out
from ctpo.tasks.task import Problem, Task, validate_request
from ctpo.tasks.tool import CHAT_TOOL

if TYPE_CHECKING:
    from ctpo.sandbox import Sandbox

SYSTEM = (
    "Solve the problem step by step. You can run Python: write a block that starts with ```python and ends with "
    "```, print what you need, and its output is shown to you. Give the final answer between <answer> and </answer>."
)
RIGHT = 1.0
"""Score of reasoning-gym's own judge from which an answer counts as right: it also has marks for half-right."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TRIES = 20  # draws a problem: half of them or more fall into the other split, or were drawn before
_LIMIT_S = 5.0
_MEMORY_MB = 1024
_SCORE = """
import json, reasoning_gym
def whole(held):
    if "__tuple__" in held:
        return tuple(held["__tuple__"])
    return dict(held["__items__"]) if "__items__" in held else held
name, found, entry = json.loads({question!r}, object_hook=whole)
print("\\n" + str(float(reasoning_gym.get_score_answer_fn(name)(answer=found, entry=entry))))
"""


class Generator:
    """Problems of one reasoning-gym generator.

    Its judges look at the whole entry, not at an answer alone, so a problem's `answer` is the entry as JSON.
    """

    def __init__(self, name: str) -> None:
        require(f"task reasoning_gym:{name}", "reasoning-gym", "reasoning_gym")
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)[:5]
            raise UserError(f"reasoning_gym has no generator {name!r}; use for example {', '.join(near)}")
        self.name = name

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """Draw distinct questions; a hash of the question decides the split. Fewer where the generator has no more."""
        validate_request(split, count)
        import reasoning_gym

        try:
            draws = reasoning_gym.create_dataset(self.name, size=_TRIES * (count + 10), seed=seed)
        except Exception as error:  # `composite` cannot be made of nothing; a generator's own needs may grow
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
    """The generator's own judge, asked in a sandbox: several of them evaluate the model's answer as Python."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def require(self) -> None:
        """Start the sandbox.

        Raises:
            UserError: where nothing can be isolated.
        """
        _sandbox(self.name)

    def _judge(self, completion: str, answer: str) -> str:
        found = extract(completion)
        if found is None:
            return "no answer"
        entry = json.loads(answer)
        if found == entry["answer"]:
            return "right"
        program = _SCORE.format(question=json.dumps([self.name, found, entry]))
        result = _sandbox(self.name).run([program])[0]
        if result.status != "ok":  # judges parse what the model wrote, and not all of them expect odd text
            return "timeout" if result.status == "timeout" else "unparsable"
        return "right" if _score(result.stdout) >= RIGHT else "wrong"


def extract(completion: str) -> str | None:
    """Return what stands in the last answer tags, else the final answer as in mathematics, else None."""
    tagged = _TAGGED.findall(completion)
    return tagged[-1].strip() if tagged else final_answer(completion)


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
        system=SYSTEM,
        extract=extract,
    )


def _dumped(entry: dict[str, Any]) -> str:
    return json.dumps(_marked(entry), default=str, ensure_ascii=False)


def _marked(value: Any) -> Any:
    """With marks on what JSON would turn into something else: judges compare boards of tuples, by numbered keys."""
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
    except (ValueError, IndexError):  # the answer itself printed something
        return 0.0


_shared: tuple[int, Sandbox] | None = None


def _sandbox(name: str) -> Sandbox:
    """The one sandbox of this process for judging, with reasoning-gym imported; made at its first use."""
    global _shared
    if _shared is None or _shared[0] != os.getpid():  # after a fork, the parent's sandbox is the parent's
        from ctpo.sandbox import Sandbox, SandboxUnavailable

        try:
            sandbox = Sandbox(timeout_s=_LIMIT_S, memory_mb=_MEMORY_MB, workers=1, preload=["reasoning_gym"])
        except SandboxUnavailable as error:
            raise UserError(
                f"task reasoning_gym:{name}: its judge may evaluate answers as Python, and is run only in isolation; "
                f"{str(error).partition('. ')[0]}"
            ) from None
        atexit.register(sandbox.close)
        _shared = os.getpid(), sandbox
    return _shared[1]
