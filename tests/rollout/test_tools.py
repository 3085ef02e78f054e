"""Which programs reach the sandbox, and which results come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ctpo.rollout import ToolRunner
from ctpo.sandbox import SandboxResult
from ctpo.tasks import PythonTool


class Recording:
    """A real sandbox that keeps a list of the programs it was given."""

    def __init__(self, sandbox: Any) -> None:
        self.sandbox, self.asked = sandbox, []

    def run(self, programs: list[str]) -> list[SandboxResult]:
        self.asked.append(programs)
        return self.sandbox.run(programs)


def test_identical_programs_run_once_and_answers_keep_their_order(sandbox: Any, arithmetic: Any) -> None:
    recording = Recording(sandbox)
    tools = ToolRunner(arithmetic.tool, recording)
    calls = tools.run(["print(1+2)", "print(5)", "print(1+2)", "1/0"])
    assert [call.output for call in calls] == ["<out>3</out>", "<out>5</out>", "<out>3</out>", "<out>?</out>"]
    assert [call.status for call in calls] == ["ok", "ok", "ok", "error"]
    assert recording.asked == [["print(1+2)", "print(5)", "1/0"]]
    assert (tools.calls, tools.executed, tools.failures) == (4, 3, 1)
    tools.run(["print(5)", "print(6)"])
    assert recording.asked[1:] == [["print(6)"]]  # remembered from the batch before


def test_a_tool_that_is_not_deterministic_runs_every_program(sandbox: Any) -> None:
    recording = Recording(sandbox)
    tools = ToolRunner(PythonTool(deterministic=False), recording)
    program = "import random; print(random.random())"
    first, second = tools.run([program, program])
    assert first.output != second.output
    assert recording.asked == [[program, program]]


def test_an_answer_that_depends_on_load_is_not_remembered(arithmetic: Any) -> None:
    """A program that was lost or out of time once may succeed the next time."""

    class Flaky:
        statuses = ["timeout", "ok"]  # noqa: RUF012

        def run(self, programs: list[str]) -> list[SandboxResult]:
            return [SandboxResult(self.statuses.pop(0), "1", "", 0.0) for _ in programs]

    tools = ToolRunner(replace(arithmetic.tool), Flaky())
    assert [tools.run(["print(1)"])[0].status for _ in range(2)] == ["timeout", "ok"]


def test_programs_of_different_conversations_share_nothing(sandbox: Any) -> None:
    tools = ToolRunner(PythonTool(error_mark=None), sandbox)
    leave, find = tools.run(
        ["open('/tmp/note', 'w').write('42'); print(1)", "print(open('/tmp/note').read())"]
    )
    assert leave.status == "ok"
    assert find.status == "error"
    assert "42" not in find.output
