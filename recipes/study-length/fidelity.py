"""Part A of docs/study-length.md: the fidelity of every arm's gradient against length and drift.

    python recipes/study-length/fidelity.py OUTPUT [PROBLEMS ...]

It trains the policies (64 updates, seed 900), then measures the policy after 8 updates against those after
16, 24 and 40.
The arms are those of study.yaml and field.yaml, in both of their widths. Finished work is kept, and the same command
goes on from there.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import yaml

from ctpo.cli.main import main as ctpo

HERE = Path(__file__).parent
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
    """Every arm with whole-response advantages in every width, as `ctpo fidelity` takes it, by name and width."""
    specs = {}
    for plan in ("study.yaml", "field.yaml"):
        objectives = yaml.safe_load((HERE / plan).read_text())["objectives"]
        for name, arm in objectives.items():
            if arm.get("advantages") == "each-turn":
                continue  # the same objective; fidelity measures both kinds of advantages
            for width, knobs in zip(("first", "second"), arm["tune"]["objective_kwargs"], strict=True):
                words = {**arm["objective_kwargs"], **knobs}
                spec = "&".join(f"{knob}={value}" for knob, value in words.items())
                specs.setdefault(f"{name}, {width}", f"{arm.get('objective', name)}?{spec}")
    return specs


def measure(output: Path, problems: int) -> None:
    """Train the policies of one length, and measure all of its pairs."""
    run = output / f"policies-{problems}"
    if not (run / "summary.json").exists():
        resume = ["--resume"] if run.exists() else []
        words = [
            f"task=worksheet?problems={problems}",
            f"max_completion_length={TOKENS[problems]}",
            *RUN,
            *WIDE,
        ]
        recipe = str(HERE.parent / "worksheet" / "train.yaml")
        if ctpo(
            ["train", recipe, *words, "save_steps=8", "save_total_limit=8", f"output_dir={run}", *resume]
        ):
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
