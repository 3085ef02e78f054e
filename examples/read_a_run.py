"""Read the records of a run, and answer what one asks first: does it learn, is it off-policy, does it clip too much?

    ctpo train output_dir=runs/first
    python examples/read_a_run.py runs/first

The figures are those of `metrics.jsonl`, one line per rollout batch. `ctpo report` draws all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the run batch by batch, and four answers below."""
    lines = Path(sys.argv[1], "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    batches = [record for record in records if record["batch"] > 0]
    print("batch  reward  held-out  clipped  log ratio  ess")
    for record in batches:
        held_out = record.get("heldout_pass@1")
        print(
            f"{record['batch']:5}  {record['reward']:6.3f}  {'' if held_out is None else f'{held_out:.3f}':>8}"
            f"  {record['clip_fraction']:7.1%}  {record['log_ratio_std']:9.3f}  {record['ess']:.2f}"
        )
    for question, answer in answers(batches).items():
        print(f"\n{question} {answer}")


def answers(batches: list[dict[str, Any]]) -> dict[str, str]:
    """The questions, each with its answer."""
    rewards = [record["reward"] for record in batches]
    # The first batches drift most: the reward changes most, and the learning rate is highest.
    early = batches[: max(1, len(batches) // 4)]
    std = max(record["log_ratio_std"] for record in batches)
    clipped = sum(record["clip_fraction"] for record in early) / len(early)
    ess = min(record["ess"] for record in batches)
    if std == 0:
        off_policy = "No. Every ratio is 1, so all objectives train alike. Raise steps_per_generation."
    else:
        off_policy = f"Yes. log ratios spread by up to {std:.2g} nats."
    if clipped > 0.2:
        too_much = f"Yes, at first: {clipped:.0%} of the tokens. `ctpo calibrate` proposes a wider band."
    else:
        too_much = f"No: {clipped:.0%} of the tokens in the first quarter of the run."
    collapsed = rewards[-1] < max(rewards) / 2
    return {
        "Does it learn?": f"The reward went from {rewards[0]:.2f} to {rewards[-1]:.2f}.",
        "Has it collapsed?": "Yes. Lower the learning rate." if collapsed else "No.",
        "Am I off-policy?": off_policy,
        "Do I clip too much?": too_much,
        "Do few tokens carry the update?": f"The smallest effective sample size is {ess:.0%} of the tokens.",
    }


if __name__ == "__main__":
    main()
