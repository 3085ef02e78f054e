"""CPU time of our verl loss over verl's own `vanilla` and `gspo`, as verl's actor calls them, forward and backward.

    python benchmarks/adapters.py [--shapes 8x2048,32x4096] [--rounds 7]

Needs verl (pip install -r tests/adapters/requirements-verl.txt). Rounds are interleaved, one thread, medians of
process time. The first two rows of each pair compute the same thing: our `grpo` and verl's `vanilla`, our `gspo`
and verl's; `ctpo` stands beside `vanilla`. The guards look at the first 512 calls of a process, so both times
are given: while they look, and after.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

PAIRS = (("ctpo/grpo", "vanilla"), ("ctpo/ctpo", "vanilla"), ("ctpo/gspo", "gspo"))


def call(function: Callable[..., Any], mode: str, shape: tuple[int, int]) -> Callable[[], None]:
    """One forward and backward of a registered loss, on fresh log-probs a call."""
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig

    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, optim=FSDPOptimizerConfig(lr=1e-3),
        clip_ratio_high=0.28,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    new = -3 * torch.rand(shape, generator=g)
    batch = {
        "old_log_prob": new - 0.03 * torch.randn(shape, generator=g),
        "advantages": torch.randn(shape[0], 1, generator=g).expand(shape).contiguous(),
        "response_mask": torch.rand(shape, generator=g) < 0.9,
    }

    def run() -> None:
        logps = new.clone().requires_grad_()
        loss, _ = function(
            log_prob=logps, loss_agg_mode=mode, config=config, rollout_is_weights=None, **batch
        )
        loss.backward()

    return run


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median process time of each, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Print one row a shape and pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="8x2048,32x4096")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    import ctpo.adapters.verl
    from ctpo.adapters import guards

    print(
        f"{'shape':>10} {'ours':>10} {'theirs':>8} {'theirs, ms':>11} {'ours/theirs':>12} {'with guards':>12}"
    )
    for text in args.shapes.split(","):
        rows, length = (int(each) for each in text.split("x"))
        for ours, theirs in PAIRS:
            mode = "seq-mean-token-mean" if theirs == "gspo" else "token-mean"
            runs = {name: call(get_policy_loss_fn(name), mode, (rows, length)) for name in (ours, theirs)}
            found = {}
            for looks in (10**9, 0):
                guards.CALLS_EXAMINED = looks  # type: ignore[misc]
                ctpo.adapters.verl.guards.__init__()  # type: ignore[misc]
                found[looks] = medians(runs, args.rounds)
            ratio, guarded = (found[looks][ours] / found[looks][theirs] for looks in (0, 10**9))
            milliseconds = 1e3 * found[0][theirs]
            print(
                f"{text:>10} {ours:>10} {theirs:>8} {milliseconds:11.2f} {ratio:12.2f} {guarded:12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
