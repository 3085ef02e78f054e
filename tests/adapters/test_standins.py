"""The stand-ins say what the recorded trainers say, name by name, type by type, default by default."""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from . import record

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src" / "ctpo" / "adapters"
# Stand-ins carry only some of these classes' fields.
PARTIAL = {"ParallelState", "Datum", "TensorData"}
# What a stand-in need not have: the adapters are called by these, or never touch them.
ABSENT = {
    *(
        "compute_policy_loss_vanilla",
        "BaseTool.__init__",
        "BaseTool.create",
        "BaseTool.execute",
        "BaseTool.release",
    ),
    *(
        "ToolResponse",
        "OpenAIFunctionToolSchema",
        "ppo_policy_loss",
        "TrainingClient.forward_backward_custom",
    ),
    *("TensorData.to_torch", "LossFunction", "LossFunction.__call__", "ClippedPGLossFn.__call__"),
}


def recorded(trainer: str) -> dict[str, Any]:
    text = (HERE / "recorded" / f"{trainer}.json").read_text()
    return {name: what for file in json.loads(text)["files"].values() for name, what in file.items()}


EVERY = [(trainer, name) for trainer in record.SYMBOLS for name in recorded(trainer)]


def same_type(standin: str | None, real: str | None) -> bool:
    return standin is None or "Any" in standin or standin.replace(" ", "") == (real or "").replace(" ", "")


@pytest.mark.parametrize(("trainer", "name"), [each for each in EVERY if each[1] not in ABSENT])
def test_field_by_field(trainer: str, name: str) -> None:
    real = recorded(trainer)[name]
    mine = record.symbols((HERE / "standins" / f"{trainer}.py").read_text(), (name,))[name]
    kind = "fields" if "fields" in real else "parameters"
    known = {field[0]: field for field in real[kind]}
    names = [field[0] for field in mine[kind]]
    if name in PARTIAL:
        assert set(names) - {"data"} <= set(known)  # `data` is a constructor's argument there, not a field
    else:
        assert names == list(known)
    for field, type_, default in mine[kind]:
        if field in known:
            assert same_type(type_, known[field][1]), f"{field}: {type_} is {known[field][1]} there"
            assert name in PARTIAL or "Any" in (type_ or "") or default == known[field][2], (
                f"{field}: default"
            )


@pytest.mark.parametrize(
    ("trainer", "theirs", "file", "ours"),
    [
        ("verl", "compute_policy_loss_vanilla", "verl.py", "policy_loss"),
        ("skyrl", "ppo_policy_loss", "skyrl.py", "policy_loss"),
        ("slime", "policy_loss_function", "slime.py", "loss"),
        ("miles", "policy_loss_function", "miles.py", "loss"),
        ("openrlhf", "PolicyLoss.forward", "openrlhf.py", "_Loss.forward"),
        ("roll", "ActorWorker.loss_func", "roll.py", "_Worker.loss_func"),
        (
            *("roll", "ActorWorker.get_old_log_probs_with_cache", "roll.py"),
            "_Worker.get_old_log_probs_with_cache",
        ),
        ("areal", "FSDPEngine.train_batch", "areal.py", "_Engine.train_batch"),
        ("areal", "MegatronEngine.train_batch", "areal.py", "_Engine.train_batch"),
        (
            *("ms_swift", "GRPOTrainer._compute_loss_and_metrics", "ms_swift.py"),
            "CTPOTrainer._compute_loss_and_metrics",
        ),
    ],
)
def test_adapters_take_what_the_trainers_own_loss_takes(
    trainer: str, theirs: str, file: str, ours: str
) -> None:
    wanted = [field[0] for field in recorded(trainer)[theirs]["parameters"]]
    mine = [field[0] for field in record.symbols((SOURCE / file).read_text(), (ours,))[ours]["parameters"]]
    assert mine[: len(wanted)] == wanted or sorted(mine[: len(wanted)]) == sorted(wanted)


def test_nemo_rl_is_called_by_keyword() -> None:
    wanted = {field[0] for field in recorded("nemo_rl")["ClippedPGLossFn.__call__"]["parameters"]}
    mine = record.symbols((SOURCE / "nemo_rl.py").read_text(), ("CTPOLoss.__call__",))["CTPOLoss.__call__"]
    assert wanted <= {field[0] for field in mine["parameters"]}


@pytest.mark.parametrize(
    ("trainer", "theirs", "file", "ours", "argument"),
    [
        ("nemo_rl", "ClippedPGLossFn.__call__", "nemo_rl.py", "CTPOLoss.__call__", "data"),
        ("slime", "policy_loss_function", "zigzag.py", "shard_loss", "batch"),
        ("miles", "policy_loss_function", "zigzag.py", "shard_loss", "batch"),
        ("areal", "grpo_loss_fn", "areal.py", "loss", "input_data"),
        ("roll", "ActorWorker.loss_func", "roll.py", "_Worker._loss", "data.batch"),
        ("roll", "ActorWorker.loss_func", "roll.py", "_Worker.loss_func", "data.batch"),
    ],
)
def test_keys_read_are_keys_handed_over(
    trainer: str, theirs: str, file: str, ours: str, argument: str
) -> None:
    import ast

    scope: Any = ast.parse((SOURCE / file).read_text())
    for part in ours.split("."):
        scope = next(each for each in scope.body if getattr(each, "name", None) == part)
    mine = set(record.keys_read(scope, argument)) - ({"max_seq_lens"} if trainer == "slime" else set())
    assert mine
    assert mine <= set(recorded(trainer)[theirs]["keys"])


def test_the_installed_verl_is_as_recorded() -> None:
    """Drift shows here first: whoever upgrades verl re-records it, and sees what changed in the difference."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("verl is not installed (pip install -r tests/adapters/requirements-verl.txt)")
    root = Path(next(iter(spec.submodule_search_locations))).parent
    for file, names in record.SYMBOLS["verl"].items():
        installed = record.symbols((root / file).read_text(), names)
        for name in names:
            assert installed[name] == recorded("verl")[name], name


def test_the_tool_class_overrides_what_verl_calls() -> None:
    text = (SOURCE / "verl_tool.py").read_text()
    for method in ("create", "execute", "release"):
        theirs = recorded("verl")[f"BaseTool.{method}"]
        mine = record.symbols(text, (f"PythonSandboxTool.{method}",))[f"PythonSandboxTool.{method}"]
        assert mine["async"]
        assert theirs["async"]
        assert [field[0] for field in mine["parameters"]] == [field[0] for field in theirs["parameters"]]
    assert inspect.isfunction(record.function)
