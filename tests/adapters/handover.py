"""The same batch through every adapter: each function hands it over as its trainer does and returns what came back.

Shape legend: B responses, T tokens of the longest. Every trainer's result is brought to the loss of the whole
minibatch, as the trainer itself would divide, and to the gradient by token [B, T].
"""

from __future__ import annotations

import importlib
import json
import os
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ctpo.objectives import preset, turns_of

PROMPTS = (3, 1, 5, 2, 4, 2)
LENGTHS = (17, 24, 9, 2, 20, 13)
KNOBS: dict[str, dict[str, Any]] = {
    "grpo": {"ratio_low": 0.08, "ratio_high": 0.08},
    "ppo": {"ratio_low": 0.08, "ratio_high": 0.08},
    "gspo": {"ratio_low": 0.01, "ratio_high": 0.01},
    "cispo": {"ratio_high": 0.05},
    "minpro": {"ratio_low": 0.1, "ratio_high": 0.1},
    "aspo": {"ratio_low": 0.08, "ratio_high": 0.08},
    "ce-gppo": {"ratio_low": 0.08, "ratio_high": 0.08},
    "dispo": {"ratio_high_pos": 0.05, "ratio_low_neg": 0.05},
    "dppo-tv": {"delta_low": 0.01, "delta_high": 0.01},
    "dppo-kl": {"delta_low": 1e-3, "delta_high": 1e-3},
    "ipo": {"delta": 0.01},
    "cppo": {"delta": 0.01, "budget": 1e-3},
    "opsm": {"delta": 0.01, "ratio_low": 0.08, "ratio_high": 0.08},
    "gmpo": {"log_low": 0.05, "log_high": 0.05},
    "topr": {"level": "sequence"},
    "lusp": {"ratio_low": 0.01, "ratio_high": 0.01},
}
"""Narrow enough that these presets clip some tokens of the batch below, and not all."""


@dataclass
class Batch:
    """Padded on the right; a hole in the mask is a tool's output."""

    logps: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor


def make(seed: int = 0, drift: float = 0.08) -> Batch:
    g = torch.Generator().manual_seed(seed)
    rows, length = len(LENGTHS), max(LENGTHS)
    inside = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    mask = inside.clone()
    for row, (start, end) in {0: (5, 9), 1: (3, 4), 4: (7, 15)}.items():
        mask[row, start:end] = False
    logps = torch.where(inside, -0.05 - 3 * torch.rand(rows, length, generator=g), torch.zeros(()))
    old = torch.where(inside, logps - drift * torch.randn(rows, length, generator=g), torch.zeros(()))
    advantages = torch.tensor([1.0, -1.3, 0.4, -0.2, 0.0, 2.0])
    return Batch(logps, old, advantages[:, None].expand(-1, length).clone(), mask)


def core(name: str, batch: Batch, reduction: str | None, **knobs: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the objective itself, called directly, by its definition and in float64."""
    chosen = knobs if reduction is None else {**knobs, "reduction": reduction}
    objective = preset(name, **chosen, backend="compose")
    logps = batch.logps.double().requires_grad_()
    rows = (batch.old.double(), batch.advantages.double(), batch.mask)
    out = objective(logps, *rows, turn_ids=turns_of(batch.mask))
    bounded = name not in ("kimi", "sapo", "vespo", "ctpo-vespo")
    assert not bounded or 0 < out.stats["clip_fraction"] < 1, "a batch that shows nothing"
    (grad,) = torch.autograd.grad(out.loss, logps)
    return out.loss.detach(), grad


def verl(name: str, batch: Batch, mode: str = "token-mean", **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.verl")
    config = Namespace(
        policy_loss=adapter.CTPOPolicyLossConfig(preset=name, knobs=knobs),
        global_batch_info={"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None},
    )
    logps = batch.logps.clone().requires_grad_()
    loss, metrics = adapter.core_algos.POLICY_LOSS_REGISTRY["ctpo"](
        old_log_prob=batch.old, log_prob=logps, advantages=batch.advantages, response_mask=batch.mask,
        loss_agg_mode=mode, config=config, rollout_is_weights=None,
    )  # fmt: skip
    assert all(isinstance(value, float) for value in metrics.values())
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


def prime_rl(name: str, batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.prime_rl")
    trainer = importlib.import_module("prime_rl.trainer.rl.loss")
    logps = batch.logps.clone().requires_grad_()
    total = torch.zeros(())
    for row, length in enumerate(LENGTHS):
        fields = (each[row, :length] for each in (batch.advantages, batch.mask))
        inputs = trainer.LossInputs(logps[row, :length], batch.old[row, :length], None, *fields)
        total = total + adapter.loss(inputs, preset=name, **knobs).loss
    loss = total / batch.mask.sum()
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


def skyrl(name: str, batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.skyrl")
    adapter.register()
    trainer = importlib.import_module("skyrl.backends.skyrl_train.utils.ppo_utils")
    config = adapter.algorithm_config()(ctpo=adapter.Settings(preset=name, knobs=knobs))
    logps = batch.logps.clone().requires_grad_()
    loss, metrics = trainer.PolicyLossRegistry.get("ctpo")(
        logps, batch.old, batch.advantages / batch.mask.sum(), config=config, loss_mask=batch.mask.float(),
        rollout_logprobs=None,
    )  # fmt: skip
    assert all(isinstance(value, float) for value in metrics.values())
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


def tinker(name: str, batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.tinker")
    trainer = importlib.import_module("tinker")
    data, leaves = [], []
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        # Prompt positions come along, as zeros.
        columns = {"logprobs": batch.old, "advantages": batch.advantages, "mask": batch.mask.float()}
        fields = {
            key: trainer.TensorData(data=[0.0] * prompt + value[row, :length].tolist(), dtype="float32")
            for key, value in columns.items()
        }
        data.append(trainer.Datum(trainer.ModelInput.from_ints([1] * (prompt + length)), fields))
        leaves.append(torch.cat([torch.full((prompt,), -1.0), batch.logps[row, :length]]).requires_grad_())
    loss, metrics = adapter.ctpo_loss(name, **knobs)(data, leaves)
    assert all(isinstance(value, float) for value in metrics.values())
    loss.backward()
    grad = torch.zeros_like(batch.logps)
    for row, (prompt, leaf) in enumerate(zip(PROMPTS, leaves, strict=True)):
        assert leaf.grad is not None
        assert not leaf.grad[:prompt].any()
        grad[row, : len(leaf) - prompt] = leaf.grad[prompt:]
    return loss.detach(), grad


def nemo_rl(name: str, batch: Batch, rollout: Tensor | None = None, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.nemo_rl")
    loss_fn = adapter.CTPOLoss(name, **knobs)
    first = torch.zeros(len(LENGTHS), 1)
    data = {
        "input_ids": torch.zeros(len(LENGTHS), 1 + max(LENGTHS), dtype=torch.long),
        "token_mask": torch.cat([first, batch.mask.float()], 1),
        "sample_mask": torch.ones(len(LENGTHS)),
        "prev_logprobs": torch.cat([first, batch.old], 1),
        "generation_logprobs": torch.cat([first, batch.old if rollout is None else rollout], 1),
        "advantages": torch.cat([first, batch.advantages], 1),
    }
    logps = batch.logps.clone().requires_grad_()
    total = torch.zeros(())
    for rows in (slice(0, 2), slice(2, 6)):  # two micro-batches, one minibatch
        part = {key: value[rows] for key, value in data.items()}
        loss, _ = loss_fn(
            data=part, global_valid_seqs=torch.tensor(6.0), global_valid_toks=batch.mask.sum(),
            next_token_logprobs=logps[rows],
        )  # fmt: skip
        total = total + loss
    return total.detach(), torch.autograd.grad(total, logps)[0]


def zigzag_inputs(
    batch: Batch, columns: Callable[[int, int, int], Tensor], held: Callable[[int], Tensor]
) -> Any:
    """Batch of slime or miles and logits [1, t, 2] of a rank.

    Args:
        batch: whole responses.
        columns: (total, response, row) ↦ positions in the response that the rank scores.
        held: total ↦ positions of the sequence that the rank holds, beyond its end where padded.
    """
    totals = [prompt + length for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]
    local = [
        columns(total, length, row) for row, (total, length) in enumerate(zip(totals, LENGTHS, strict=True))
    ]
    logits = []
    for row, (prompt, total) in enumerate(zip(PROMPTS, totals, strict=True)):
        # Token 0 with the wanted log-prob; the response is scored from the prompt's last position on.
        first = torch.full((2 * total + 64,), -0.7)
        first[prompt - 1 : prompt - 1 + LENGTHS[row]] = batch.logps[row, : LENGTHS[row]]
        logits.append(torch.stack([first, (1 - first.exp()).log()], -1)[held(total)])
    given = {
        "unconcat_tokens": [torch.zeros(total, dtype=torch.long) for total in totals],
        "total_lengths": totals,
        "response_lengths": list(LENGTHS),
        "loss_masks": [batch.mask[row, :length].int() for row, length in enumerate(LENGTHS)],
        "log_probs": [batch.old[row, at] for row, at in enumerate(local)],
        "advantages": [batch.advantages[row, at] for row, at in enumerate(local)],
    }
    return given, torch.cat(logits)[None].requires_grad_(), local


def capture(module: Any, monkeypatch: Any) -> list[list[Tensor]]:
    """The log-probs the trainer's scorer makes, kept so that their gradient can be read."""
    seen: list[list[Tensor]] = []
    original = module.get_log_probs_and_entropy

    def scorer(*args: Any, **kwargs: Any) -> Any:
        returned = original(*args, **kwargs)
        # slime returns a pair, miles the mapping alone.
        scored = returned[1] if isinstance(returned, tuple) else returned
        for each in scored["log_probs"]:
            if each.requires_grad:  # a shard without a token of the response may stand outside of the graph
                each.retain_grad()
        seen.append(scored["log_probs"])
        return returned

    monkeypatch.setattr(module, "get_log_probs_and_entropy", scorer)
    return seen


def arguments(name: str, knobs: dict[str, Any]) -> Namespace:
    """Of slime and miles, those that matter here."""
    return Namespace(
        ctpo={"preset": name, "knobs": knobs}, use_rollout_logprobs=False, use_kl_loss=False, entropy_coef=0.0,
        use_tis=False, use_opsm=False, qkv_format="thd", rollout_temperature=1.0, log_probs_chunk_size=-1,
        allgather_cp=False, calculate_per_token_loss=False, true_on_policy_mode=False,
        rollout_top_p=1.0, rollout_top_k=-1,
    )  # fmt: skip


def _zigzag(
    adapter: Any, cp_utils: Any, scorer: Any, name: str, batch: Batch, knobs: Any, monkeypatch: Any
) -> Any:
    given, logits, local = zigzag_inputs(batch, lambda _, n, __: torch.arange(n), torch.arange)
    seen = capture(scorer, monkeypatch)
    reducer = cp_utils.get_sum_of_sample_mean(
        given["total_lengths"], given["response_lengths"], given["loss_masks"]
    )
    loss, metrics = adapter.loss(arguments(name, knobs), given, logits, reducer)
    loss = loss / len(LENGTHS)
    loss.backward()
    assert all(value.ndim == 0 for value in metrics.values())
    grad = torch.zeros_like(batch.logps)
    for row, (values, at) in enumerate(zip(seen[0], local, strict=True)):
        grad[row, at] = values.grad
    return loss.detach(), grad


def slime(name: str, batch: Batch, monkeypatch: Any, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.slime")
    backend = "slime.backends.megatron_utils"
    cp_utils, scorer = (importlib.import_module(f"{backend}.{each}") for each in ("cp_utils", "loss"))
    return _zigzag(adapter, cp_utils, scorer, name, batch, knobs, monkeypatch)


def alone(parallel: Any, shared: Any = None, group: Any = None) -> None:
    """Set miles' parallel state: `shared` as its context-parallel group, `group` of this process alone elsewhere."""
    one = parallel.GroupInfo(0, 1, group)
    groups = {name: one for name in parallel.ParallelState.__dataclass_fields__ if name in _GROUPS}
    parallel.set_parallel_state(parallel.ParallelState(**{**groups, "cp": shared or one}))


_GROUPS = ("intra_dp", "intra_dp_cp", "cp", "tp", "pp", "ep", "etp", "indep_dp")


def miles(name: str, batch: Batch, monkeypatch: Any, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.miles")
    alone(importlib.import_module("miles.backends.training_utils.parallel"))
    backend = "miles.backends.training_utils"
    cp_utils, scorer = (
        importlib.import_module(f"{backend}.{e}") for e in ("cp_utils", "loss_hub.logit_processors")
    )
    return _zigzag(adapter, cp_utils, scorer, name, batch, knobs, monkeypatch)


@contextmanager
def chosen(name: str, knobs: dict[str, Any], **more: Any) -> Iterator[None]:
    """The settings of adapters that take them from the environment."""
    text = json.dumps({"preset": name, "knobs": knobs, **more})
    with mock.patch.dict(os.environ, {"CTPO_LOSS": text}):
        yield


def openrlhf(
    name: str,
    batch: Batch,
    rollout: Tensor | None = None,
    anchor: str = "old",
    kind: str = "ppo",
    **knobs: Any,
) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.openrlhf")
    logps = batch.logps.clone().requires_grad_()
    tokens, samples = float(batch.mask.sum()), float(len(LENGTHS))
    total = torch.zeros(())
    with chosen(name, knobs, anchor=anchor):
        adapter.install()
        loss_fn = importlib.import_module("openrlhf.models").PolicyLoss(policy_loss_type=kind)
        for rows in (slice(0, 2), slice(2, 6)):
            loss, clipped, kl, mismatch = loss_fn(
                logps[rows], batch.old[rows], batch.advantages[rows], action_mask=batch.mask[rows].long(),
                rollout_log_probs=None if rollout is None else rollout[rows],
                dp_size=1, batch_num_tokens=tokens, global_batch_size=samples,
            )  # fmt: skip
            assert clipped.ndim == kl.ndim == 0
            assert (mismatch is None) == (rollout is None)
            total = total + loss
    return total.detach(), torch.autograd.grad(total, logps)[0]


def roll(
    name: str,
    batch: Batch,
    worker: str = "RLVRWorker",
    mode: str = "token-mean",
    kl: float = 0.0,
    **knobs: Any,
) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.roll")
    logps = batch.logps.clone().requires_grad_()
    made = getattr(adapter, worker)()
    made.strategy = Namespace(op_compute_log_probs=lambda logits, input_ids, attention_mask: logits)
    correction = Namespace(is_weight=Namespace(enabled=False), filters=[])
    made.pipeline_config = Namespace(
        loss_agg_mode=mode, train_infer_correction=correction, kl_loss_coef=kl, dual_clip_loss=False
    )
    first = torch.zeros(len(LENGTHS), 1, dtype=torch.long)
    counts = {"batch_num_tokens": batch.mask.sum(), "global_valid_samples": len(LENGTHS)}
    total = torch.zeros(())
    with chosen(name, knobs):
        for rows in (slice(0, 2), slice(2, 6)):
            given = {
                "input_ids": first[rows].expand(-1, 1 + batch.mask.shape[1]),
                "response_mask": torch.cat([first, batch.mask.long()], 1)[rows],
                "advantages": batch.advantages[rows],
                "old_log_probs": batch.old[rows],
                "ref_log_probs": batch.old[rows],
            }
            data = Namespace(batch=given, meta_info={k: {"response_mask": v} for k, v in counts.items()})
            loss, metrics = made.loss_func(data, logps[rows])
            assert torch.equal(given["advantages"], batch.advantages[rows])
            assert all(isinstance(value, float) for value in metrics.values())
            total = total + loss
    return total.detach(), torch.autograd.grad(total, logps)[0]


def areal(name: str, batch: Batch, anchor: str = "old", **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.areal")
    actor = importlib.import_module("areal.trainer.ppo.actor")
    streams, parts = [], []
    for rows in ((0, 1), (2, 3, 4, 5)):

        def packed(values: Tensor, rows: tuple[int, ...] = rows) -> Tensor:
            return torch.cat([values[row, : LENGTHS[row]] for row in rows])

        ends = torch.tensor([0, *(LENGTHS[row] for row in rows)]).cumsum(0)
        parts.append({
            "logprobs": packed(batch.old) - (0.0 if anchor == "rollout" else 0.3),
            "prox_logp": packed(batch.old) + (0.3 if anchor == "rollout" else 0.0),
            "advantages": packed(batch.advantages), "loss_mask": packed(batch.mask).long(), "cu_seqlens": ends,
        })  # fmt: skip
        streams.append(packed(batch.logps).clone().requires_grad_())
    theirs = partial(actor.grpo_loss_fn, eps_clip=0.2, eps_clip_higher=None, c_clip=None)
    with chosen(name, knobs, anchor=anchor):
        adapter.install()
        engine = importlib.import_module("areal.engine").FSDPPPOActor(streams)
        assert type(engine).__module__ == "ctpo.adapters.areal"  # the path by which workers find it
        taken = engine.train_batch(
            parts, loss_fn=theirs, loss_weight_fn=lambda x: x["loss_mask"].count_nonzero()
        )
    grad, flat = torch.zeros_like(batch.logps), torch.cat([each.grad for each in streams])
    for row, values in enumerate(flat.split(list(LENGTHS))):
        grad[row, : LENGTHS[row]] = values
    return torch.tensor(taken["loss"]), grad


def ms_swift(
    name: str, batch: Batch, loss_type: str = "dapo", beta: float = 0.0, **knobs: Any
) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.ms_swift")
    made = adapter.CTPOTrainer(loss_type, beta)
    logps = batch.logps.clone().requires_grad_()
    lengths = torch.tensor(LENGTHS)
    data = importlib.import_module(f"{__package__}.standins.ms_swift")
    given = data.GRPOBatch(
        batch.mask, torch.zeros(len(LENGTHS), dtype=torch.bool), lengths, old_per_token_logps=batch.old,
        ref_per_token_logps=batch.old, advantages=batch.advantages, num_items_in_batch=batch.mask.sum(),
    )  # fmt: skip
    with chosen(name, knobs):
        loss, metrics = made._compute_loss_and_metrics(lambda: logps, {}, given)
    assert metrics["mode"] == "train"
    assert all(isinstance(value, float) for values in made._metrics["train"].values() for value in values)
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


def trl_rows(batch: Batch) -> tuple[Any, list[tuple[int, int]]]:
    """A micro-batch as TRL's own packer and collator make it, and the row and column of each of its loss terms."""
    trl = importlib.import_module("trl.experimental.async_grpo.async_grpo_trainer")
    packing = importlib.import_module("trl.experimental.async_grpo.packing")
    packed, token = packing.TreeRow(), 1
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        held = [*([False] * prompt), *batch.mask[row, :length].tolist()]
        logps = torch.cat([torch.zeros(prompt), batch.old[row, :length]])
        packed.add({
            "input_ids": torch.arange(token, token + prompt + length), "completion_mask": torch.tensor(held).long(),
            "old_log_probs": logps, "advantage": batch.advantages[row, 0].item(), "group_id": row, "metrics": {},
        })  # fmt: skip
        token += prompt + length  # no token occurs twice, so nothing is shared
    inputs = trl.DataCollatorForRollout(pad_token_id=0)([[packed]])
    where = [(row, at) for row in range(len(LENGTHS)) for at in range(LENGTHS[row]) if batch.mask[row, at]]
    inputs["advantages"] = torch.stack([batch.advantages[at] for at in where])[None]
    return inputs, where


def trl_trainer(cls: Any) -> Any:
    """A trainer of TRL with what its loss needs, and no model, queue or server."""
    from accelerate import Accelerator

    made = cls.__new__(cls)
    made.accelerator, made.aux_loss_enabled = Accelerator(cpu=True), False
    made.epsilon_low = made.epsilon_high = 0.08
    made.current_gradient_accumulation_steps, made._metrics = 1, {"train": defaultdict(list)}
    made._step_forward_tokens = made._step_trained_tokens = made._step_seq_len_weighted = 0.0
    made._step_samples = made._step_forward_s = 0.0
    return made


def trl_loss(trainer: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a trainer and its gradient by token."""
    inputs, where = trl_rows(batch)
    index = inputs["token_index"][0]
    flat = torch.full(inputs["input_ids"].shape, -0.7)
    flat[0, index] = torch.stack([batch.logps[at] for at in where])
    flat.requires_grad_()
    loss = trainer.compute_loss(lambda **_: Namespace(log_probs=flat, entropy=flat.detach()), inputs)
    grad, by_position = torch.zeros_like(batch.logps), torch.autograd.grad(loss, flat)[0][0, index]
    for at, value in zip(where, by_position, strict=True):
        grad[at] = value
    return loss.detach(), grad


def trl_async(name: str, batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    adapter = importlib.import_module("ctpo.adapters.trl_async")
    trainer = trl_trainer(adapter.CTPOAsyncTrainer)
    trainer.objective = importlib.import_module("ctpo.adapters.shared").objective_for(name, knobs)
    return trl_loss(trainer, batch)


REDUCED_AS = {
    "verl": "token-mean",
    "prime_rl": "token-mean",
    "skyrl": "token-mean",
    "slime": "seq-mean-token-mean",
    "miles": "seq-mean-token-mean",
    "tinker": None,
    "nemo_rl": None,
    "openrlhf": "token-mean",
    "roll": "token-mean",
    "areal": "token-mean",
    "ms_swift": "token-mean",
    "trl_async": "token-mean",
}
"""What each trainer's denominators amount to here; None where the preset's own reduction stands."""
