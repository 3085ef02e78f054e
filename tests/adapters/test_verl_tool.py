"""The tool class under verl's own BaseTool, with the real sandbox."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "verl", reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)"
)


@pytest.fixture(scope="module")
def tool() -> Any:
    from verl.tools.schemas import OpenAIFunctionToolSchema

    from ctpo.adapters.verl_tool import SCHEMA, PythonSandboxTool

    schema = OpenAIFunctionToolSchema.model_validate(SCHEMA)
    return PythonSandboxTool(
        {"timeout_s": 5.0, "memory_mb": 256, "workers": 2, "max_result_chars": 256}, schema
    )


def ask(tool: Any, *programs: Any) -> list[tuple[str, float, dict[str, Any]]]:
    async def every() -> Any:
        instance, _ = await tool.create()
        answers = await asyncio.gather(*(tool.execute(instance, {"code": program}) for program in programs))
        await tool.release(instance)
        return answers

    return [(response.text, reward, metrics) for response, reward, metrics in asyncio.run(every())]


def test_trajectories_run_at_the_same_time(tool: Any) -> None:
    answers = ask(tool, "print(6 * 7)", "1 / 0", "print('x' * 1000)", "print()")
    assert answers[0][0] == "42"
    assert "ZeroDivisionError" in answers[1][0]
    assert 250 < len(answers[2][0]) <= 256  # the mark in the middle has room for the longest number
    assert [reward for _, reward, _ in answers] == [0.0] * 4
    assert [metrics["status"] for _, _, metrics in answers] == ["ok", "error", "ok", "ok"]


def test_programs_are_isolated(tool: Any) -> None:
    (answer,) = ask(tool, "import socket; socket.create_connection(('127.0.0.1', 9), 1)")
    assert answer[2]["status"] == "error"


@pytest.mark.parametrize("code", [None, 3, ["print(1)"]])
def test_a_call_that_is_none(tool: Any, code: Any) -> None:
    (answer,) = ask(tool, code)
    assert answer[0].startswith("error:")


def test_as_verl_loads_it(tmp_path: Path) -> None:
    """By a YAML file, through verl's own registry."""
    from verl.tools.tool_registry import initialize_tools_from_config

    file = tmp_path / "python_tool.yaml"
    file.write_text(
        "tools: [{class_name: ctpo.adapters.verl_tool.PythonSandboxTool, config: {type: native, timeout_s: 5.0}}]"
    )
    (tool,) = initialize_tools_from_config(str(file))
    assert tool.name == "python"
    assert type(tool).__name__ == "PythonSandboxTool"
