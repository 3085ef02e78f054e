"""Tasks: prompts, the tool they lend, and verifiable answers."""

from __future__ import annotations

from ctpo.tasks.registry import get_task, task_names
from ctpo.tasks.task import Problem, Task, reward_function
from ctpo.tasks.tool import CHAT_TOOL, PythonTool

__all__ = ["CHAT_TOOL", "Problem", "PythonTool", "Task", "get_task", "reward_function", "task_names"]
