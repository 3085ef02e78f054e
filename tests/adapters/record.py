"""Record what the trainers hand over: names, types and defaults of the functions and fields the adapters rely on.

Reads sources without importing them. Give a folder that holds one checkout (or unpacked wheel) a trainer:

    python tests/adapters/record.py FOLDER [TRAINER …]

FOLDER/<trainer>/ is searched for the files below; FOLDER/<trainer>/VERSION, if there is one, says what it is
(otherwise git does). A test compares the stand-ins in `standins/` with these records, field by field.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "recorded"
_PPO = "verl/trainer/ppo"
_SKYRL = "skyrl/backends/skyrl_train/utils"
_SLIME = "slime/backends/megatron_utils"
_MILES = "miles/backends/training_utils"
SYMBOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "verl": {
        f"{_PPO}/core_algos.py": ("compute_policy_loss_vanilla", "agg_loss", "register_policy_loss"),
        f"{_PPO}/rollout_corr_helper.py": ("apply_bypass_mode",),
        "verl/workers/config/actor.py": ("PolicyLossConfig",),
        "verl/tools/base_tool.py": (
            "BaseTool.__init__",
            "BaseTool.create",
            "BaseTool.execute",
            "BaseTool.release",
        ),
        "verl/tools/schemas.py": ("ToolResponse", "OpenAIFunctionToolSchema"),
    },
    "prime_rl": {"src/prime_rl/trainer/rl/loss.py": ("LossInputs", "LossOutputs")},
    "skyrl": {
        f"{_SKYRL}/ppo_utils.py": (
            *("ppo_policy_loss", "reduce_loss", "BaseFunctionRegistry.register"),
            "BaseFunctionRegistry.list_available",
        ),
        f"{_SKYRL}/off_policy_correction_utils.py": ("apply_off_policy_correction",),
    },
    "slime": {
        f"{_SLIME}/cp_utils.py": ("get_logits_and_tokens_offset_with_cp", "get_sum_of_sample_mean"),
        f"{_SLIME}/loss.py": (
            *("policy_loss_function", "get_log_probs_and_entropy", "get_rollout_top_p_logprob_kwargs"),
        ),
    },
    "miles": {
        f"{_MILES}/cp_utils.py": ("get_logits_and_tokens_offset_with_cp", "get_sum_of_sample_mean"),
        f"{_MILES}/loss_hub/losses.py": ("policy_loss_function",),
        f"{_MILES}/loss_hub/logit_processors.py": ("get_log_probs_and_entropy",),
        f"{_MILES}/parallel.py": ("get_parallel_state", "ParallelState"),
    },
    "tinker": {
        "tinker/lib/public_interfaces/training_client.py": ("TrainingClient.forward_backward_custom",),
        "tinker/types/datum.py": ("Datum",),
        "tinker/types/tensor_data.py": ("TensorData", "TensorData.to_torch"),
    },
    "openrlhf": {
        "openrlhf/models/loss.py": ("PolicyLoss.__init__", "PolicyLoss.forward", "aggregate_loss"),
    },
    "roll": {
        "roll/pipeline/base_worker.py": ("ActorWorker.get_old_log_probs_with_cache",),
        "roll/pipeline/rlvr/actor_worker.py": ("ActorWorker.loss_func", "ActorWorker.compute_sample_weights"),
        "roll/utils/functionals.py": ("agg_loss",),
    },
    "areal": {
        "areal/trainer/ppo/actor.py": ("grpo_loss_fn",),
        "areal/engine/fsdp_engine.py": ("FSDPEngine.train_batch",),
        "areal/engine/megatron_engine.py": ("MegatronEngine.train_batch",),
    },
    "ms_swift": {
        "swift/rl_core/data.py": ("GRPOBatch",),
        "swift/rlhf_trainers/grpo_trainer.py": (
            *("GRPOTrainer._compute_loss_and_metrics", "GRPOTrainer._get_per_token_logps_and_entropies"),
        ),
        "swift/trainers/trainer_factory.py": ("TrainerFactory.get_cls",),
    },
    "nemo_rl": {
        "nemo_rl/algorithms/loss/interfaces.py": (
            *("LossFunction", "LossFunction.__call__", "LossInputType", "LossType"),
        ),
        "nemo_rl/algorithms/loss/loss_functions.py": ("ClippedPGLossFn.__call__", "ClippedPGLossDataDict"),
    },
}
KEYS = {
    "policy_loss_function": "batch",
    "ClippedPGLossFn.__call__": "data",
    "grpo_loss_fn": "input_data",
    "ActorWorker.loss_func": "data.batch",
}
"""Functions that read a mapping by key; the keys are part of the hand-over."""


def annotation(node: ast.AST | None) -> str | None:
    """A type as text, in one spelling: `Float[Tensor, " seq"]` and `torch.Tensor` are `Tensor`."""
    if node is None:
        return None
    text = ast.unparse(node).strip("'")
    text = re.sub(r"(?:Float|Int|Bool)\[(?:torch\.)?Tensor, '[^']*'\]", "Tensor", text)
    text = text.replace("torch.", "").replace("typing.", "")
    for _ in range(3):
        text = re.sub(r"Optional\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1 | None", text)
    return re.sub(r"\b(List|Dict|Tuple)\[", lambda match: match[0].lower(), text)


def function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    given = node.args
    plain = given.posonlyargs + given.args
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    every = [*zip(plain, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    parameters = [
        [each.arg, annotation(each.annotation), None if default is None else ast.unparse(default)]
        for each, default in every
        if each.arg not in ("self", "cls")
    ]
    if given.kwarg:
        parameters.append([f"**{given.kwarg.arg}", annotation(given.kwarg.annotation), None])
    return {
        "async": isinstance(node, ast.AsyncFunctionDef),
        "parameters": parameters,
        "returns": annotation(node.returns),
    }


def fields(node: ast.ClassDef) -> dict[str, Any]:
    fields = []
    for each in node.body:
        if isinstance(each, ast.AnnAssign):
            default = None if each.value is None else ast.unparse(each.value)
            fields.append([ast.unparse(each.target), annotation(each.annotation), default])
        elif isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant):
            fields.append([ast.unparse(each.targets[0]), None, ast.unparse(each.value)])
    return {"fields": fields}


def keys_read(node: ast.AST, argument: str) -> list[str]:
    """String keys by which a mapping is read, whose name is given as it is written."""
    keys = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Subscript) and ast.unparse(each.value) == argument:
            key: ast.expr | None = each.slice
        elif (
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr == "get"
            and ast.unparse(each.func.value) == argument
        ):
            key = each.args[0]
        else:
            continue
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            keys.add(key.value)
    return sorted(keys)


def symbols(source: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a source file says of these functions and classes."""
    tree = ast.parse(source)
    record = {}
    for name in names:
        scope: Any = tree
        for part in name.split("."):
            scope = next(each for each in scope.body if getattr(each, "name", None) == part)
        record[name] = fields(scope) if isinstance(scope, ast.ClassDef) else function(scope)
        if name in KEYS:
            record[name]["keys"] = keys_read(scope, KEYS[name])
    return record


def version(folder: Path) -> str:
    file = folder / "VERSION"
    if file.exists():
        return file.read_text().strip()
    shown = subprocess.run(
        ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.strip()


def record(folder: Path, trainer: str) -> dict[str, Any]:
    files = {file: symbols((folder / file).read_text(), names) for file, names in SYMBOLS[trainer].items()}
    return {"trainer": trainer, "version": version(folder), "files": files}


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SYMBOLS:
        result = record(Path(sys.argv[1]) / chosen, chosen)
        (HERE / f"{chosen}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"{chosen}: {result['version']}")
