"""Tasks: their problems, the tool that a model may use on them, and the check of its answers."""

from __future__ import annotations

from ctpo.tasks.functions import FunctionTool
from ctpo.tasks.registry import get_task, task_names
from ctpo.tasks.rewards import SegmentReward
from ctpo.tasks.task import Problem, Task, reward_function
from ctpo.tasks.tool import CHAT_TOOL, PythonTool

__all__ = [
    "CHAT_TOOL",
    "FunctionTool",
    "Problem",
    "PythonTool",
    "SegmentReward",
    "Task",
    "get_task",
    "reward_function",
    "task_names",
]
