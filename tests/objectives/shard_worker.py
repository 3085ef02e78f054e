"""What each gloo process of test_sharding runs: every case, sharded, against the same case computed whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ctpo.objectives import (
    Gate,
    RolloutCorrection,
    SequenceShard,
    Weight,
    contiguous,
    correct_rollout,
    preset,
    preset_names,
    striped,
    zigzag,
)
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.layouts.sharded import Sharded
from ctpo.objectives.reductions import REDUCTIONS
from ctpo.objectives.rollout_correction import LEVELS

from .batches import Batch, make, run, turns

LENGTH = 16
LAYOUTS = ("contiguous", "zigzag", "striped", "shuffled")
Difference = dict[str, float]


def place(name: str, group: Any) -> tuple[SequenceShard, Tensor]:
    """A shard and the global columns it holds."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    local = LENGTH // world
    shard = {
        "contiguous": lambda: contiguous(group),
        "zigzag": lambda: zigzag(group),
        "striped": lambda: striped(local, group),
        "shuffled": lambda: SequenceShard(
            group,
            positions=torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))[rank::world],
        ),
    }[name]()
    return shard, shard.token_positions(local)


def batch() -> Batch:
    whole = make(rows=6, length=LENGTH, drift=0.1, seed=4)
    whole.old[0, 3] = float("-inf")
    whole.logps[1, ~whole.mask[1]] = float("nan")
    return whole


def compare(
    objective: Any,
    whole: Batch,
    part: Batch,
    columns: Tensor,
    group: Any,
    whole_ids: Tensor | None = None,
    **packing: Any,
) -> Difference:
    """Largest differences between the sharded and the whole call."""
    expected, expected_grad = run(objective, whole, segment_ids=whole_ids)
    logps = part.logps.clone().requires_grad_()
    turn_ids = turns(whole.mask, whole_ids)[..., columns]
    out = objective(logps, part.old, part.advantages, part.mask, turn_ids=turn_ids, **packing)
    with no_collectives():
        (grad,) = torch.autograd.grad(out.loss, logps)
    total = out.loss.detach().clone()
    dist.all_reduce(total, group=group)
    return {
        "loss": (total - expected.loss.detach()).abs().item(),
        "grad": (grad - expected_grad[..., columns]).abs().max().item(),
        "token_loss": (out.token_loss - expected.token_loss[..., columns]).abs().max().item(),
        "stats": max((out.stats[k] - v).abs().item() for k, v in expected.stats.items()),
    }


class no_collectives:
    """Any collective inside this block is an error."""

    def __enter__(self) -> None:
        self.saved = {n: getattr(dist, n) for n in ("all_gather", "all_reduce")}
        for name in self.saved:
            setattr(dist, name, self._refuse)

    def __exit__(self, *_: object) -> None:
        for name, function in self.saved.items():
            setattr(dist, name, function)

    @staticmethod
    def _refuse(*_: object, **__: object) -> None:
        raise AssertionError("a collective in the backward pass")


def padded(group: Any) -> Iterator[tuple[str, Difference]]:
    whole = batch()
    for layout in LAYOUTS:
        shard, columns = place(layout, group)
        part = Batch(whole.logps[:, columns], whole.old[:, columns], whole.advantages, whole.mask[:, columns])
        for name, reduction in zip(preset_names(), cycle(REDUCTIONS), strict=False):
            objective = preset(name, reduction=reduction)
            yield f"padded/{layout}/{name}", compare(objective, whole, part, columns, group, shard=shard)


def per_token(group: Any) -> Iterator[tuple[str, Difference]]:
    """Advantages of tokens, of rows and of a stream."""
    whole = batch()
    values = torch.randn(whole.logps.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    ids = torch.arange(LENGTH) // 5
    for layout in LAYOUTS:
        shard, columns = place(layout, group)
        for name, take, packing in (
            ("padded", lambda x: x, {}),
            ("packed", lambda x: x[0], {"segment_ids": ids[columns], "whole_ids": ids}),
        ):
            all_of = Batch(*(take(x) for x in (whole.logps, whole.old, values, whole.mask)))
            part = Batch(
                *(x[..., columns] for x in (all_of.logps, all_of.old, all_of.advantages, all_of.mask))
            )
            objective = preset("ctpo")
            yield (
                f"per-token/{layout}/{name}",
                compare(objective, all_of, part, columns, group, shard=shard, **packing),
            )


def packed(group: Any) -> Iterator[tuple[str, Difference]]:
    whole = make(rows=1, length=LENGTH, drift=0.2, seed=5)
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 4, 4, 4])
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.7], dtype=torch.float64)
    flat = Batch(whole.logps[0], whole.old[0], advantages, whole.mask[0])
    for layout in LAYOUTS:
        shard, columns = place(layout, group)
        part = Batch(flat.logps[columns], flat.old[columns], advantages, flat.mask[columns])
        packing = {"shard": shard, "segment_ids": ids[columns], "whole_ids": ids}
        for name in preset_names():
            yield f"packed/{layout}/{name}", compare(preset(name), flat, part, columns, group, **packing)


def corrections(group: Any) -> Iterator[tuple[str, Difference]]:
    """Every level as weight and gate at once, of padded rows and of packed ones."""
    whole = batch()
    rollout = whole.old - 0.3 * torch.randn(whole.old.shape, generator=torch.Generator().manual_seed(7))
    turns = torch.arange(LENGTH).expand_as(rollout) // 3
    segments = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 4, 4, 4])
    correction = RolloutCorrection(
        weight=Weight("segment", 1.4),
        gates=tuple(Gate("k3", level, high=0.08) for level in LEVELS),
        veto=0.5,
        denominator="kept",
    )
    for layout in LAYOUTS:
        shard, columns = place(layout, group)
        device, size = torch.device("cpu"), len(columns)
        cases = {
            "padded": (slice(None), Padded(), Sharded(shard, size, device)),
            "packed": (4, Packed(segments), Sharded(shard, size, device, segments[columns])),
        }
        for name, (rows, one, many) in cases.items():
            tensors = [x[rows] for x in (whole.old, rollout, whole.mask)]
            ids = turns[rows]
            expected = correct_rollout(*tensors, correction, turn_ids=ids, layout=one)
            part = correct_rollout(
                *(x[..., columns] for x in tensors), correction, turn_ids=ids[..., columns], layout=many
            )
            assert 0 < expected.rejected.sum() < tensors[2].sum()
            yield (
                f"correction/{layout}/{name}",
                {
                    "weights": (part.weights - expected.weights[..., columns]).abs().max().item(),
                    "mask": (part.rejection_mask != expected.rejection_mask[..., columns]).sum().item(),
                    "stats": max((part.stats[k] - v).abs().item() for k, v in expected.stats.items()),
                },
            )


def pooled(group: Any) -> Iterator[tuple[str, Difference]]:
    """Data-parallel ranks with rows (and lengths) of their own share one quantile."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    whole = make(rows=8, length=LENGTH, drift=0.3, seed=6)
    whole.mask[rank * 8 // world : (rank + 1) * 8 // world, -2:] &= rank == 0
    masks = [torch.empty_like(whole.mask, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(masks, whole.mask.to(torch.uint8), group=group)
    for other in range(world):
        rows = slice(other * 8 // world, (other + 1) * 8 // world)
        whole.mask[rows] = masks[other][rows] > 0
    mine = torch.arange(rank * 8 // world, (rank + 1) * 8 // world)
    cut = LENGTH if rank == 0 else LENGTH - 2  # other ranks pad less
    part = whole.rows(mine)
    part = Batch(part.logps[:, :cut], part.old[:, :cut], part.advantages, part.mask[:, :cut])
    for name in ("sequence-quantile", "prefix-quantile", "m2po"):
        _, expected = run(preset(name), whole)
        objective = preset(name, across_ranks=True)
        objective = dataclasses.replace(
            objective, trust_region=dataclasses.replace(objective.trust_region, group=group)
        )
        counts = {"num_tokens": whole.mask.sum(), "num_sequences": whole.mask.any(-1).sum()}
        _, grad = run(objective, part, **counts)
        yield f"pooled/{name}", {"grad": (grad - expected[mine][:, :cut]).abs().max().item()}


def empty(group: Any) -> Iterator[tuple[str, Difference]]:
    """Rows of no tokens."""
    nothing = torch.zeros(2, 0, dtype=torch.float64)
    for name, shard in (("contiguous", contiguous(group)), ("striped", striped(0, group))):
        logps = nothing.clone().requires_grad_()
        out = preset("ctpo")(logps, nothing, torch.ones(2, dtype=torch.float64), nothing.bool(), shard=shard)
        out.loss.backward()
        yield f"empty/{name}", {"loss": abs(out.loss.item()), "tokens": out.stats["tokens"].item()}


def local_numbers(group: Any) -> Iterator[tuple[str, Difference]]:
    """Every rank numbers tokens or segments from 0, as if they were the whole."""
    ids = torch.tensor([0, 0, 1, 1])
    cases: dict[str, tuple[SequenceShard, Tensor | None]] = {
        "holds position 0": (SequenceShard(group, positions=torch.arange(4)), None),
        "token holds position": (SequenceShard(group, chunk_ids=torch.tensor([0])), None),
        "segment_ids: 0 follows 1": (contiguous(group), ids),
    }
    for message, (shard, segment_ids) in cases.items():
        try:
            Sharded(shard, 4, torch.device("cpu"), segment_ids)
        except ValueError as error:
            refused = message in str(error)
        else:
            refused = False
        yield f"local/{message}", {"taken": float(not refused)}


def work(rank: int, world: int, folder: str) -> None:
    """Entry of a process; writes this rank's differences."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    pair = dist.new_group([0, 1])
    results: dict[str, Difference] = {}
    groups = {4: dist.group.WORLD, 2: pair if rank < 2 else None}
    for size, group in groups.items():
        if group is None:
            continue
        for cases in (padded, packed, per_token, corrections, pooled, empty, local_numbers):
            results.update({f"{size}/{case}": difference for case, difference in cases(group)})
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
