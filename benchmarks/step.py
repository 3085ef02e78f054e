"""CPU-seconds per phase and peak memory of one training step, ours against TRL's own GRPOTrainer.

    python benchmarks/step.py [--model smollm2] [--lengths equal ragged] [--sides stock stock-bf16 ctpo] [--rounds 1]
                              [--json]
    python benchmarks/step.py --sides ctpo ctpo-share_prompts ...    with one setting switched off
    python benchmarks/step.py --check                                loss and gradient of every setting against plain

One step generates 8 responses to each of 8 prompts, scores them, and takes one update. Responses have 64 tokens, or 16
to 64, the same on both sides. Every response has an advantage, unless --zero-groups asks for groups without one. Each
step runs in its own process, because peak memory belongs to a process. The sides take turns, and medians are reported.

Sides:
    stock         GRPOTrainer in float32 with its other defaults
    stock-bf16    GRPOTrainer with all its defaults, which autocast to bfloat16
    stock-fast    GRPOTrainer in float32 without activation checkpointing
    ctpo          CTPOTrainer with its defaults
    ctpo-KEY      CTPOTrainer with that key switched off

A ratio is stock's median divided by ours. `cpu_seconds_ratio` and `peak_rss_ratio` compare with `stock`, or with
`stock-bf16` if `stock` is not run. `ratios` compares with each. `peak_share` compares the rate at which training does
the products with weights that it needs, each counted once, with the rate of a 1024³ product in the same dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import warnings
from typing import Any

import torch
from step_check import check
from step_cost import clock, figures_of, peak_flops, product_flops
from step_sides import STOCK, make_trainer


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.check:
        print(json.dumps(check(args.model), indent=2))
    elif args.child:
        print("RESULT " + json.dumps(_step(args, args.sides[0], args.lengths[0])), flush=True)
    else:
        _compare(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", nargs="+", default=["equal", "ragged"], choices=["equal", "ragged"])
    parser.add_argument("--sides", nargs="+", default=["stock", "stock-bf16", "ctpo"])
    parser.add_argument("--rows", type=int, default=64, help="per_device_train_batch_size on both sides")
    parser.add_argument(
        "--zero-groups", type=int, default=0, help="prompts whose responses all get the same reward"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _compare(args: argparse.Namespace) -> None:
    runs: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in args.lengths}
    for _ in range(args.rounds):
        for lengths in args.lengths:
            for side in args.sides:
                figures = _in_a_process(args, side, lengths)
                runs[lengths].setdefault(side, []).append(figures)
                if not args.json:
                    shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
                    print(f"{lengths:6} {side:28} {shown}", flush=True)
    summary = {lengths: _summary(sides) for lengths, sides in runs.items()}
    if args.json:
        print(json.dumps({**vars(args), "results": summary}, indent=2))
    else:
        for lengths, figures in summary.items():
            print(lengths, json.dumps(figures.get("ratios", {})))


def _in_a_process(args: argparse.Namespace, side: str, lengths: str) -> dict[str, float]:
    own = {"model": args.model, "rows": args.rows, "zero-groups": args.zero_groups, "threads": args.threads}
    options = [f"--{name}={value}" for name, value in own.items()]
    return figures_of([__file__, "--child", "--sides", side, "--lengths", lengths, *options], side)


def _summary(sides: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians: dict[str, Any] = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for side, runs in sides.items()
    }
    peers = [side for side in STOCK if side in medians]
    if not peers or "ctpo" not in medians:
        return medians
    ours, ratios = medians["ctpo"], {}
    for peer in peers:
        pairs = {"cpu_seconds_ratio": "step_s", "peak_rss_ratio": "peak_rss_gb"}
        ratios[peer] = {name: medians[peer][figure] / ours[figure] for name, figure in pairs.items()}
    return {**medians, **ratios[peers[0]], "ratios": ratios}


def _step(args: argparse.Namespace, side: str, lengths: str) -> dict[str, float]:
    """The figures of one step in this process. If the model needs a slower pass than the settings ask for, it fails."""
    from ctpo.training.scoring.choose import SlowPassNote

    warnings.simplefilter("error", SlowPassNote)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            side, lengths, folder, model=args.model, rows=args.rows, zero_groups=args.zero_groups
        )
        spent = clock(trainer)
        trainer.train()
    step, generation, optimizer = (spent[name] for name in ("step", "generation", "optimizer"))
    training = step - generation - optimizer
    figures = {"step_s": step, "generation_s": generation, "training_s": training, "optimizer_s": optimizer}
    figures["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if side not in STOCK:
        from ctpo.training.scoring.precision import computes_in_bfloat16

        dtype = torch.bfloat16 if computes_in_bfloat16(trainer.args, trainer.model) else torch.float32
        figures["peak_share"] = product_flops(trainer) / training / peak_flops(dtype)
    return figures


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
