"""A Python tool for verl that runs in our sandbox. `rollout.multi_turn.tool_config_path` names its YAML file.

One sandbox serves every trajectory of a process. Its programs share nothing, so trajectories do not either. A sandbox
belongs to the process that made it, so it is made at the first call, in the process of the agent loop.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import uuid4

from ctpo.adapters.shared import framework
from ctpo.sandbox import Sandbox
from ctpo.tasks.tool import PythonTool

_INSTALL = "verl>=0.9.1"
_base = framework("verl.tools.base_tool", _INSTALL)
_schemas = framework("verl.tools.schemas", _INSTALL)

_SANDBOXES: dict[tuple[float, int, int | None], Sandbox] = {}
_MAKING = threading.Lock()

SCHEMA = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run a Python program and read what it prints. Every call starts afresh.",
        "parameters": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "A complete program; print the result."}
            },
            "required": ["code"],
        },
    },
}
"""The description of the tool for the model, in OpenAI's format."""


class PythonSandboxTool(_base.BaseTool):  # type: ignore[misc, name-defined]
    """verl's `BaseTool`: runs `code` isolated, answers with its output.

    Args:
        config: `timeout_s`, `memory_mb`, `workers` of the sandbox, `max_result_chars` of an answer.
        tool_schema: as verl read it from the YAML file; by default `SCHEMA`.
    """

    def __init__(self, config: dict[str, Any], tool_schema: Any = None) -> None:
        super().__init__(config, tool_schema or _schemas.OpenAIFunctionToolSchema.model_validate(SCHEMA))
        limit = int(config.get("max_result_chars", 1024))
        self._text = PythonTool(error_mark=None, max_result_chars=limit)
        self._limits = (
            float(config.get("timeout_s", 5.0)),
            int(config.get("memory_mb", 512)),
            config.get("workers"),
        )

    def _sandbox(self) -> Sandbox:
        with _MAKING:
            if self._limits not in _SANDBOXES:
                timeout_s, memory_mb, workers = self._limits
                _SANDBOXES[self._limits] = Sandbox(timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)
            return _SANDBOXES[self._limits]

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, Any]:
        """Begin a trajectory. Nothing is kept for it."""
        return instance_id or str(uuid4()), _schemas.ToolResponse()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[Any, float, dict[str, Any]]:
        """Run the program in `parameters["code"]`. Return the answer, a reward of 0, and what happened."""
        code = parameters.get("code")
        if not isinstance(code, str):
            return (
                _schemas.ToolResponse(text="error: give the program as the string `code`"),
                0.0,
                {"status": "call"},
            )
        # In a thread, since starting the interpreters takes a second and other trajectories should not wait.
        sandbox = await asyncio.to_thread(self._sandbox)
        (result,) = await sandbox.arun([code])
        rendered = self._text.render(result.status, result.stdout, result.stderr)
        text = self._text.body(rendered)
        return _schemas.ToolResponse(text=text), 0.0, {"status": result.status, "seconds": result.wall_s}

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        """End a trajectory. The sandbox stays for the others."""
