"""Part A of docs/evidence/study-length.md: the fidelity of every arm's gradient against length and drift.

    python recipes/study-length/fidelity.py OUTPUT [PROBLEMS ...]

It trains the policies (64 updates, seed 900), then measures the policy after 8 updates against those after 16, 24 and
40. The arms are those of study.yaml and field.yaml, in both of their widths. Finished work is kept, and the same
command goes on from there.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctpo.cli.main import main as ctpo
from ctpo.lab.comparison.plan import Arm, read_plan

HERE = Path(__file__).parent
PLANS = ("study.yaml", "field.yaml")
TOKENS = {1: 96, 7: 448, 14: 896}  # the limit of a response, by problems of a worksheet
BEHAVIOUR, TARGETS = 8, (16, 24, 40)  # updates
RUN = [
    "seed=900",
    "train_problems=512",
    "eval_every=0",
    "eval_problems=32",
    "transcripts=0",
    "advantages=trl",
]
WIDE = [
    f"objective_kwargs.log_{name}={value}" for name, value in (("low", 0.25), ("high", 0.5), ("dual", 0.5))
]


def arms() -> dict[str, str]:
    """Every arm with whole-response advantages in every width, as `ctpo fidelity` takes it, by name and width.

    The same objective by problem is no arm of its own here: fidelity measures both kinds of advantages.
    """
    specs = {}
    for plan in PLANS:
        for arm in read_plan(HERE / plan).arms:
            if arm.keys.get("advantages") != "each-turn":
                for setting in arm.grid:
                    specs.setdefault(name_of(arm, setting), spec_of(arm, setting))
    return specs


def name_of(arm: Arm, setting: Mapping[str, Any]) -> str:
    """An arm's name and width, such as "grpo, ratio_low=0.2, ratio_high=0.28, ratio_dual=3.0"."""
    return ", ".join([arm.name, *(f"{knob}={value}" for knob, value in setting["objective_kwargs"].items())])


def spec_of(arm: Arm, setting: Mapping[str, Any]) -> str:
    """An arm's objective with all of its knobs, such as "grpo?reduction=seq-mean-token-mean&ratio_low=0.2"."""
    knobs = {**arm.keys["objective_kwargs"], **setting["objective_kwargs"]}
    return f"{arm.keys['objective']}?" + "&".join(f"{knob}={value}" for knob, value in knobs.items())


def training(run: Path, problems: int) -> list[str]:
    """The words after `ctpo train` that train the policies of one length, or go on with a run that has begun."""
    if run.exists():
        return ["--resume", str(run)]
    sizes = [f"task=worksheet?problems={problems}", f"max_completion_length={TOKENS[problems]}"]
    kept = ["save_steps=8", "save_total_limit=8", f"output_dir={run}"]
    return [str(HERE.parent / "worksheet" / "train.yaml"), *sizes, *RUN, *WIDE, *kept]


def measure(output: Path, problems: int) -> None:
    """Train the policies of one length, and measure all of its pairs."""
    run = output / f"policies-{problems}"
    if not (run / "summary.json").exists() and ctpo(["train", *training(run, problems)]):
        raise SystemExit(f"the policies of {problems} problems were not trained")
    specs = list(itertools.chain.from_iterable(("--objective", spec) for spec in arms().values()))
    sizes = ["--problems", "32", "--blocks", "4", "--directions", "16"]
    for target in TARGETS:
        pair = [str(run / f"checkpoint-{step}") for step in (BEHAVIOUR, target)]
        words = [*pair, "objective_kwargs.reduction=seq-mean-token-mean", *sizes, *specs]
        if ctpo(["fidelity", *words, "--output", str(output / f"pair-{problems}-{target}")]):
            raise SystemExit(f"the pair {problems}, {target} was not measured")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    for length in map(int, sys.argv[2:] or map(str, TOKENS)):
        measure(Path(sys.argv[1]), length)
