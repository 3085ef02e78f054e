"""Time and memory of the objectives against named peers, side by side, and the precision of prefix sums.

    python benchmarks/objectives.py             # a table
    python benchmarks/objectives.py --json      # for machines
    python benchmarks/objectives.py --inductor  # also the definition through torch.compile (half a minute per shape)
    python benchmarks/objectives.py --published core_algos.py torch_functional.py  # also the published CTPO loss
    python benchmarks/objectives.py --growth    # cost per token from 16k to 1M tokens per row
    python benchmarks/objectives.py --presets   # every preset beside grpo, on the definition and on the C pass
    python benchmarks/objectives.py --drift 0.2 # log ratios that spread by more than 0.02 per token: more is clipped

Each row is forward and backward on the same tensors, contenders interleaved, medians over the rounds (CPU time
of one thread, else wall time); ratios are their time over ours. Peers run their own code on log-probs they did
not have to compute:

- ctpo, grpo: our presets as a user calls them, with statistics;
- packed-ids, packed-cu: ctpo on the same tokens laid end to end, with segment_ids or with cu_seqlens;
- definition: ctpo with backend="compose";
- inductor: the same through torch.compile, with the same statistics;
- floor: a copy of what any pass has to read (two tensors of log-probs and a mask) into as much as it has to write;
- eager: CTPO as its paper describes it, written straightforwardly in torch, with the kinds of statistics that
  the published implementation reports (moments and quantiles of the ratio, clip counts, read to the host);
- eager-bare: the same without statistics;
- trl: `GRPOTrainer._compute_loss` itself on a stand-in trainer that hands over the log-probs, with metrics;
- published: `_compute_policy_loss_cum_token_la_impl` of github horizon-llm/CTPO with its metrics, from your copies
  of verl/trainer/ppo/core_algos.py and verl/utils/torch_functional.py;
- liger: `LigerFusedLinearGRPOFunction.ppo_loss_fn`, the loss of its fused GRPO (no metrics).

TRL's and Liger's losses are GRPO's; ours of the same family (`grpo`) stands beside them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from objective_peers import eager_ctpo, liger_loss, published_loss, trl_loss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ctpo.objectives import Objective, preset, preset_names, turns_of
from ctpo.objectives.cpu.supported import objective_refusal

SHAPES = ((8, 128), (8, 512), (16, 1024), (64, 1024), (64, 8192), (8, 65536), (1, 524288))
PRESET_SHAPES = ((8, 512), (64, 1024))
SMALL_TOKENS = 1 << 16  # below it a round is repeated until it has as many tokens
DRIFT = 0.02
ROWS = tuple((1, 1 << k) for k in range(14, 21))
Step = Callable[[], None]
Loss = Callable[..., Any]


def clock() -> float:
    """CPU time of one thread, which others' load moves less; wall time of several or of a GPU."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def batch(rows: int, length: int, device: str, drift: float = DRIFT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs that drift by so much per token, and multi-turn masks: ragged ends, 64 tool tokens in every 512."""
    g = torch.Generator().manual_seed(0)
    logps = -2 - torch.rand(rows, length, generator=g)
    old = logps - drift * torch.randn(rows, length, generator=g)
    column = torch.arange(length)
    ends = torch.randint(length // 2, length + 1, (rows, 1), generator=g)
    mask = (column < ends) & (column % 512 < 448)
    advantages = torch.randn(rows, generator=g)
    return logps.to(device), old.to(device), advantages.to(device), mask.to(device)


def loss_of(objective: Objective) -> Loss:
    """The loss alone."""
    return lambda *inputs: objective(*inputs).loss


def packed(packing: str) -> Loss:
    """The loss of ctpo on padded rows that are laid end to end."""
    objective = preset("ctpo")

    def loss(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return objective(
            logps.view(-1), old.view(-1), advantages, mask.view(-1), **segments(packing, *logps.shape)
        ).loss

    return loss


@functools.cache
def segments(packing: str, rows: int, length: int) -> dict[str, Tensor]:
    """The argument that tells the segments of a packed batch apart."""
    if packing == "cu_seqlens":
        return {packing: torch.arange(0, rows * length + 1, length, dtype=torch.int32)}
    return {packing: torch.arange(rows).repeat_interleave(length)}


def through_inductor() -> Loss:
    """The definition of ctpo through torch.compile, statistics included."""
    objective = preset("ctpo", backend="compose")

    @torch.compile(dynamic=False)
    def compiled(*inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = objective(*inputs)
        return out.loss, out.stats

    return lambda *inputs: compiled(*inputs)[0]


@functools.cache
def space(shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Memory that the floor writes to."""
    return torch.empty(shape), torch.empty(shape), torch.empty(shape, dtype=torch.bool)


def floor(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> None:
    """Read and write as many bytes as any pass over the tokens has to."""
    for target, source in zip(space(logps.shape), (logps.detach(), old, mask), strict=True):
        target.copy_(source)


def each_preset(
    shapes: tuple[tuple[int, int], ...], rounds: int, device: str, drift: float
) -> list[dict[str, Any]]:
    """Nanoseconds per token of every preset, by its definition and by the C pass where that runs it."""
    table = []
    for rows, length in shapes:
        inputs = batch(rows, length, device, drift)
        ids = turns_of(inputs[3])
        runs: dict[tuple[str, str], Loss] = {}
        for name in preset_names():
            definition = preset(name, backend="compose")
            parts = (definition.ratio, definition.trust_region, definition.surrogate)
            known = device == "cpu" and objective_refusal(*parts) is None
            for backend in ("compose", "native") if known else ("compose",):
                objective = preset(name, backend=backend)
                runs[name, backend] = functools.partial(loss_with_turns, objective, ids)
        steps = {f"{name}/{backend}": step(loss, inputs) for (name, backend), loss in runs.items()}
        times = interleaved(steps, rounds, max(1, SMALL_TOKENS // (rows * length)))
        for name, backend in runs:
            seconds = times[f"{name}/{backend}"]
            row: dict[str, Any] = {"shape": [rows, length], "preset": name, "backend": backend}
            row["ns_per_token"] = statistics.median(seconds) * 1e9 / (rows * length)
            table.append(row | {"over_grpo": ratio(times, f"{name}/{backend}", f"grpo/{backend}")})
    return table


def loss_with_turns(objective: Objective, turn_ids: Tensor, *inputs: Tensor) -> Tensor:
    """The loss alone, for an objective that may need the turns."""
    return objective(*inputs, turn_ids=turn_ids).loss


def show_presets(table: list[dict[str, Any]]) -> None:
    """Print one line per preset and shape."""
    print(
        f"{'shape':>12} {'preset':>22} {'definition':>11} {'over grpo':>10} {'C pass':>8} {'over grpo':>10}"
    )
    found = {(*row["shape"], row["preset"], row["backend"]): row for row in table}
    for row in table:
        if row["backend"] != "compose":
            continue
        shape = "×".join(map(str, row["shape"]))
        native = found.get((*row["shape"], row["preset"], "native"))
        fast = f"{native['ns_per_token']:8.1f} {native['over_grpo']:9.2f}×" if native else f"{'–':>8}"
        print(f"{shape:>12} {row['preset']:>22} {row['ns_per_token']:11.1f} {row['over_grpo']:9.2f}× {fast}")


def contenders(inductor: bool, published: list[Path] | None) -> tuple[dict[str, Loss], dict[str, str]]:
    """Losses by name, and peers that cannot run with the reason."""
    ours = {
        "ctpo": preset("ctpo"),
        "grpo": preset("grpo"),
        "definition": preset("ctpo", backend="compose"),
    }
    runs = {name: loss_of(objective) for name, objective in ours.items()}
    runs |= {"packed-ids": packed("segment_ids"), "packed-cu": packed("cu_seqlens")}
    if inductor:
        runs["inductor"] = through_inductor()
    if not torch.cuda.is_available():
        runs["floor"] = floor
    runs["eager"] = lambda *x: eager_ctpo(*x, True)
    runs["eager-bare"] = lambda *x: eager_ctpo(*x, False)
    if published is not None:
        runs["published"] = published_loss(published)
    missing = {}
    for name, found in (("trl", trl_loss()), ("liger", liger_loss())):
        if isinstance(found, str):
            missing[name] = found
        else:
            runs[name] = found
    return runs, missing


def step(loss: Loss, inputs: tuple[Tensor, ...]) -> Step:
    """Forward and backward once."""

    def once() -> None:
        logps = inputs[0].detach().requires_grad_()
        value = loss(logps, *inputs[1:])
        if value is not None:
            value.backward()
        if logps.is_cuda:
            torch.cuda.synchronize()

    return once


def interleaved(steps: dict[str, Step], rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds of every contender in every round, all of them in each round, each so many times at once.

    Every round begins with another contender, as what ran before leaves caches and freed memory behind.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()
    order = list(steps.items())
    for _ in range(rounds):
        order = order[1:] + order[:1]
        for name, run in order:
            start = clock()
            for _ in range(repeats):
                run()
            times[name].append((clock() - start) / repeats)
    return times


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's profiler writes to standard error from C++ (two lines a call)."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def peak_bytes(run: Step, device: str) -> int:
    """Most bytes alive at once beyond those before the call, by torch's own allocation records."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    alive = most = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def gpu_counts(run: Step) -> dict[str, int]:
    """Kernels and host synchronisations of one call."""
    run()
    with quiet(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
    events = record.events()
    assert events is not None
    kernels = sum(e.device_type.name == "CUDA" and "mem" not in e.name.lower() for e in events)
    waits = sum(e.name in ("aten::item", "aten::_local_scalar_dense", "cudaMemcpyAsync") for e in events)
    return {"kernels": kernels, "synchronisations": waits}


def prefix_errors() -> dict[int, dict[str, float]]:
    """Largest error of float32 prefix sums of 0.02-drift log ratios, against float64."""
    found = {}
    for length in (1024, 8192, 65536, 524288):
        d = 0.02 * torch.randn(8, length, generator=torch.Generator().manual_seed(1))
        exact = d.double().cumsum(-1)
        naive = torch.zeros(8)
        worst = torch.zeros(8, dtype=torch.float64)
        for t in range(length):  # a plain float32 accumulator, as a GPU thread would keep
            naive = naive + d[:, t]
            worst = torch.maximum(worst, (naive.double() - exact[:, t]).abs())
        stream = torch.cat([5 + d[0], d[0]]).cumsum(0)  # a segment that drifted before ours
        after = stream[length:] - stream[length - 1]
        found[length] = {
            "float32 accumulator": worst.max().item(),
            "torch.cumsum float32": (d.cumsum(-1).double() - exact).abs().max().item(),
            "float32 after a drifting segment": (after.double() - exact[0]).abs().max().item(),
            "ours (float64)": (d.double().cumsum(-1).float().double() - exact).abs().max().item(),
        }
    return found


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over the rounds of one contender's time over another's."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def measure(
    shapes: tuple[tuple[int, int], ...],
    rounds: int,
    device: str,
    inductor: bool,
    published: list[Path] | None,
    drift: float,
) -> dict[str, Any]:
    """All figures."""
    runs, missing = contenders(inductor, published)
    table = []
    for rows, length in shapes:
        inputs = batch(rows, length, device, drift)
        clipped = preset("ctpo")(*inputs).stats["clip_fraction"].item()
        steps = {name: step(loss, inputs) for name, loss in runs.items()}
        times = interleaved(steps, rounds, max(1, SMALL_TOKENS // (rows * length)))
        for name in runs:
            seconds = statistics.median(times[name])
            ours = "grpo" if name in ("trl", "liger", "grpo") else "ctpo"
            row = {"shape": [rows, length], "loss": name, "ms": seconds * 1e3, "ours": ours}
            row["ctpo_clips"] = clipped
            row["ns_per_token"] = seconds * 1e9 / (rows * length)
            row["ratio"] = ratio(times, name, ours)
            if "published" in runs:
                row["published_over_it"] = ratio(times, "published", name)
            row["bytes_per_token"] = peak_bytes(steps[name], device) / (rows * length)
            if device == "cuda":
                row |= gpu_counts(steps[name])
            table.append(row)
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "not_measured": missing,
        "losses": table,
        "prefix_sum_error": prefix_errors(),
    }


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"torch {results['torch']}, {results['device']}, {results['threads']} threads, "
        f"medians of {results['rounds']} rounds"
    )
    for name, reason in results["not_measured"].items():
        print(f"{name}: {reason}, not measured")
    print(f"{'shape':>12} {'loss':>14} {'ms':>9} {'ns/token':>9} {'B/token':>8}  time over ours")
    for row in results["losses"]:
        shape = "×".join(map(str, row["shape"]))
        if row["loss"] == "ctpo":
            print(f"{shape:>12} {row['ctpo_clips']:.1%} of the tokens are clipped by ctpo")
        extra = f"  {row['kernels']} kernels, {row['synchronisations']} syncs" if "kernels" in row else ""
        if "published_over_it" in row:
            extra = f"  published takes {row['published_over_it']:.1f}×{extra}"
        print(
            f"{shape:>12} {row['loss']:>14} {row['ms']:9.2f} {row['ns_per_token']:9.1f}"
            f" {row['bytes_per_token']:8.1f}  {row['ratio']:.2f}× {row['ours']}{extra}"
        )
    print("\nlargest error of a prefix sum of log ratios (spread 0.02 per token)")
    for length, errors in results["prefix_sum_error"].items():
        print(f"{length:>8}: " + ", ".join(f"{name} {value:.1e}" for name, value in errors.items()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time and memory of the objectives against named peers.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--inductor", action="store_true", help="also the definition through torch.compile")
    parser.add_argument("--published", type=Path, nargs="+", help="also the published loss, from these files")
    parser.add_argument("--growth", action="store_true", help="other shapes: one row of 16k to 1M tokens")
    parser.add_argument("--drift", type=float, default=DRIFT, help="spread of a log ratio (default 0.02)")
    parser.add_argument("--presets", action="store_true", help="every preset beside grpo, and no peers")
    parser.add_argument("--small", action="store_true", help="only the first shape, three rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes, rounds = (SHAPES[:1], 3) if options.small else (SHAPES, options.rounds)
    shapes = ROWS if options.growth else shapes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.presets:
        shapes = shapes if options.small or options.growth else PRESET_SHAPES
        table = each_preset(shapes, rounds, device, options.drift)
        if options.json:
            json.dump(table, sys.stdout, indent=1)
        else:
            show_presets(table)
        return
    results = measure(shapes, rounds, device, options.inductor, options.published, options.drift)
    if options.json:
        json.dump(results, sys.stdout, indent=1)
        print()
    else:
        show(results)


if __name__ == "__main__":
    main()
