"""What each gloo process of test_verl_engine runs: verl's FSDP2 engine trains a tiny model one step with our loss.

verl has no CPU platform of its own; that of `ctpo.engines.verl` answers its questions for plain PyTorch.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def model_folder(folder: Path) -> str:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    path = folder / "model"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(path)
    return str(path)


def batch(rank: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of a rank: prompt, response (with a tool's output in the middle), anchor, advantage."""
    rows = []
    for row in range(2):
        g = torch.Generator().manual_seed(10 * rank + row)
        prompt, response = 3 + row, 12 - 4 * row + rank
        mask = torch.ones(response, dtype=torch.long)
        mask[4:6] = 0
        rows.append(
            {
                "prompts": torch.randint(64, (prompt,), generator=g),
                "responses": torch.randint(64, (response,), generator=g),
                "response_mask": mask,
                "old_log_probs": -4.16 + 0.2 * torch.randn(response, generator=g),
                "advantages": torch.full((response,), 1.0 - 1.7 * row),
            }
        )
    return rows


def data_of(rank: int, world: int) -> Any:
    """The TensorDict verl's actor worker gives its engine."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    rows = batch(rank)
    whole = [torch.cat([row["prompts"], row["responses"]]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["input_ids"] = whole
    columns["position_ids"] = [torch.arange(len(each)) for each in whole]
    columns["loss_mask"] = columns["response_mask"]
    data = TensorDict(
        {key: torch.nested.as_nested_tensor(value, layout=torch.jagged) for key, value in columns.items()},
        batch_size=[len(rows)],
    )
    tu.assign_non_tensor(
        data, use_remove_padding=False, pad_mode=DatasetPadMode.NO_PADDING, temperature=1.0,
        use_dynamic_bsz=False, micro_batch_size_per_gpu=1, global_batch_size=len(rows) * world,
        calculate_entropy=False, use_fused_kernels=False,
    )  # fmt: skip
    return data


def engine_of(path: str) -> Any:
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.base import EngineRegistry

    float32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = EngineRegistry.new(
        model_type="language_model", backend="fsdp2",
        model_config=HFModelConfig(
            path=path, use_remove_padding=False, load_tokenizer=False, enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(strategy="fsdp2", mixed_precision=float32, use_torch_compile=False),
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, total_training_steps=2, clip_grad=1e9, weight_decay=0.0),
        checkpoint_config=CheckpointConfig(),
    )  # fmt: skip
    engine.initialize()
    return engine


def full(engine: Any) -> dict[str, torch.Tensor]:
    return {name: value.full_tensor().clone() for name, value in engine.module.named_parameters()}


def work(rank: int, world: int, folder: str, model: str) -> None:
    """One `train_batch`; rank 0 writes what came of it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    import_module("ctpo.engines.verl.plugin")  # before verl asks for its device
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
    from verl.workers.utils.losses import ppo_loss

    from ctpo.adapters.verl import CTPOPolicyLossConfig
    from ctpo.engines.verl.ratios import Ratios
    from ctpo.engines.verl.worker import observed
    from ctpo.objectives import preset
    from ctpo.training.diagnostics.profile import added, position_edges

    actor = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, optim=FSDPOptimizerConfig(lr=1e-2),
        policy_loss=CTPOPolicyLossConfig(preset="ctpo"),
    )  # fmt: skip
    engine = engine_of(model)
    ratios = Ratios(preset("ctpo"), 16, tokenizer=None)
    ratios.start_update()
    before = full(engine)
    with engine.train_mode():
        outputs = engine.train_batch(
            data_of(rank, world), observed(functools.partial(ppo_loss, actor), ratios)
        )
    after = full(engine)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    metrics = {
        name: float(torch.as_tensor(value).sum()) for name, value in _plain(outputs["metrics"]).items()
    }
    sums = ratios.take(0).sums
    assert sums is not None
    profile = added([sums], position_edges(16))
    assert profile is not None
    figures = {"tokens": float(profile.count.sum()), "log_ratio": float(profile.row("log_weight").sum())}
    Path(folder, f"ratios-{rank}.json").write_text(json.dumps(figures))
    if rank == 0:
        report = {"moved": len(moved), "of": len(before), "metrics": metrics}
        Path(folder, "engine.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [each.aggregate() if hasattr(each, "aggregate") else each for each in value]
        if isinstance(value, list)
        else value.aggregate() if hasattr(value, "aggregate") else value
        for name, value in metrics.items()
    }  # fmt: skip


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
