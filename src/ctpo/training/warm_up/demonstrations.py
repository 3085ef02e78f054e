"""Worked solutions as responses, token by token as rollouts will have them.

Calls are written in the model's own form and shown to the `ToolRunner` that serves rollouts. It reads them, runs the
programs in the sandbox, and inserts the real outputs. So what is trained on is what the engine would have produced, and
a call that rollouts could not read shows here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from ctpo.rollout.chat import encode_prompt, task_format
from ctpo.rollout.records import Rollout
from ctpo.rollout.template import Template, plain_ids, template_ids
from ctpo.rollout.tools import ToolRunner
from ctpo.rollout.turns import Answer, Turn
from ctpo.tasks import Problem, PythonTool, Task
from ctpo.tasks.calls import FUNCTION
from ctpo.tasks.task import RIGHT, judgements
from ctpo.tasks.tool import SUCCESS
from ctpo.training.warm_up.solutions import Step

ANSWER: Final = "{answer}"
"""What `answer_line` holds in place of the printed value."""
_WHOLE: Final = re.compile(r"(-?\d+)\.0+")
_QUESTION: Final = {"role": "user", "content": "WHAT-WAS-ASKED"}
_AT_ONCE: Final = 512
"""Solutions whose programs run together."""


def answer_line_of(task: Task) -> str:
    """How a task's responses are to name their answer: in a box if the prompt asks for one, else after ####."""
    return f"\\boxed{{{ANSWER}}}" if "\\boxed" in (task.system or "") else f"#### {ANSWER}"


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A problem with the steps of its solution."""

    problem: Problem
    steps: Sequence[Step]


@dataclass
class Demonstration:
    """A response that is to be imitated, or why there is none."""

    problem: Problem
    rollout: Rollout
    text: str = ""
    """The whole response as text."""
    refused: str | None = None
    """Why it cannot be used; None if it can."""


@dataclass
class Demonstrator:
    """Makes demonstrations for one model and one task.

    Args:
        tokenizer: the model's.
        task: gives the prompt, the tool and the check.
        tools: runs the programs.
        answer_line: the last line of a response, with `ANSWER` where the last program's output stands.
        max_length: the most tokens of a prompt and its response.
    """

    tokenizer: PreTrainedTokenizerBase
    task: Task
    tool: PythonTool
    tools: ToolRunner
    answer_line: str
    max_length: int

    def __post_init__(self) -> None:
        form = task_format(self.tokenizer, self.task)
        self._native = form is not None and form.style == "native"

    def demonstrate(self, worked: Sequence[Worked]) -> list[Demonstration]:
        """A demonstration for each solution, in order. Those that cannot be used say why in `refused`."""
        return [
            each
            for start in range(0, len(worked), _AT_ONCE)
            for each in self._together(worked[start : start + _AT_ONCE])
        ]

    def _together(self, worked: Sequence[Worked]) -> list[Demonstration]:
        made = [
            Demonstration(each.problem, Rollout(prompt_ids=self._prompt(each.problem))) for each in worked
        ]
        self.tools.begin(self.tokenizer, [each.rollout.prompt_ids for each in made])
        printed = [""] * len(made)
        for turn in range(max((len(each.steps) for each in worked), default=0)):
            asking = [
                i for i, each in enumerate(worked) if turn < len(each.steps) and made[i].refused is None
            ]
            turns = []
            for i in asking:
                ids, written = self._call(worked[i].steps[turn])
                self._sampled(made[i], ids, written)
                turns.append(Turn(response=i, ids=ids, ended=self._native))
            for i, answer in zip(asking, self.tools.answer(turns), strict=True):
                printed[i] = self._answered(made[i], answer, worked[i].steps[turn].program)
        for i, each in enumerate(made):
            if each.refused is None:
                self._end(each, printed[i])
        self._judge(made)
        return made

    def _prompt(self, problem: Problem) -> list[int]:
        return encode_prompt(self.tokenizer, self.task, problem.prompt)

    def _call(self, step: Step) -> tuple[list[int], str]:
        """A step as the model is to write it: its tokens and its text."""
        if self._native:
            text = self._native_call(step)
            return template_ids(self.tokenizer, text), text
        before = f"{step.text}\n" if step.text else ""
        feed = "\n" if self.tool.fenced else ""
        text = f"{before}{self.tool.open}{feed}{step.program}{self.tool.close}"
        return plain_ids(self.tokenizer, text), text

    def _native_call(self, step: Step) -> str:
        """A turn that ends with a call as the model's chat template writes it; "" if it cannot.

        The text of a special token in a solution would become that token, so such a solution is left out.
        """
        form = task_format(self.tokenizer, self.task)
        assert form is not None
        template = Template(self.tokenizer, self.task.template_kwargs, form.declarations)
        call = {"type": "function", "function": {"name": FUNCTION, "arguments": {"code": step.program}}}
        turn = {"role": "assistant", "content": step.text, "tool_calls": [call]}
        before = template.render([_QUESTION]) or ""
        whole = template.render([_QUESTION, turn], prompt=False) or ""
        written, end, _ = whole.removeprefix(before).rpartition(self.tokenizer.eos_token)
        special = any(token in step.text + step.program for token in self.tokenizer.all_special_tokens)
        return written + end if before and whole.startswith(before) and not special else ""

    def _sampled(self, made: Demonstration, ids: list[int], text: str) -> None:
        made.rollout.completion_ids += ids
        made.rollout.response_mask += [1] * len(ids)
        made.text += text

    def _answered(self, made: Demonstration, answer: Answer | None, program: str) -> str:
        """Take the answer to a call, and return the last line that the program printed."""
        if answer is None or [call.program.strip() for call in answer.calls] != [program.strip()]:
            made.refused = "its call cannot be read"
            return ""
        call = answer.calls[-1]
        made.rollout.calls += answer.calls
        made.rollout.completion_ids += answer.ids
        made.rollout.response_mask += [0] * len(answer.ids)
        made.text += self.tokenizer.decode(answer.ids)
        if call.status != SUCCESS:
            made.refused = "its program fails"
        return self.tool.body(call.output).strip().rpartition("\n")[2]

    def _end(self, made: Demonstration, printed: str) -> None:
        if not printed:
            made.refused = "its program prints nothing"
            return
        whole = _WHOLE.fullmatch(printed)
        last = self.answer_line.replace(ANSWER, whole[1] if whole else printed)
        self._sampled(made, [*plain_ids(self.tokenizer, last), self.tokenizer.eos_token_id], last)
        made.rollout.finished = True
        if len(made.rollout.prompt_ids) + len(made.rollout.completion_ids) > self.max_length:
            made.refused = "it is too long"

    def _judge(self, made: Sequence[Demonstration]) -> None:
        """Refuse the responses that the task's own check does not call right."""
        whole = [each for each in made if each.refused is None]
        verdicts = judgements(
            self.task,
            [self.tokenizer.decode(each.rollout.completion_ids, skip_special_tokens=True) for each in whole],
            [each.problem.answer for each in whole],
            [each.problem.id for each in whole],
        )
        for each, judgement in zip(whole, verdicts, strict=True):
            if judgement.verdict != RIGHT:
                each.refused = "its program gives another answer"
