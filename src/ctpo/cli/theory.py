"""`ctpo theory`: exact bias and variance of the ratio families on policies small enough to enumerate."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctpo.errors import UserError

if TYPE_CHECKING:
    from ctpo.lab.theory import Analysis, Estimator, Problem, Setup

_DESCRIPTION = """\
Enumerate every response of a small autoregressive policy and print, for each ratio family and for any of the library's
objectives, the exact bias of its gradient estimate against grad J(pi) and against its own target, its variance, and
its mean squared error, in units of |grad J|. docs/theory.md says what the figures show.

POLICY is random (logits of pi = those of b + distance x normal), adversarial (+- distance, with the signs that make the
bias of --against large), or a JSON or npz file with tables of logits `behaviour` and `target` [rows, V], and optionally
`reward` [V^T] and `horizon`.
SHARING is tabular (a row of logits for each prefix), position, bigram or stationary (one row for all).
REWARD is random, binary, first, last (1 where that action is 0) or count (share of actions that are 0).
ADVANTAGE is terminal (R - baseline at every token), behaviour (A^b) or target (A^pi).
"""
_EPILOG = """\
examples:
  ctpo theory                                              the families, V=2, T=8
  ctpo theory --objective ctpo --objective 'ctpo?high=0.2&dual=0.2' --objective grpo
  ctpo theory --advantage target --figure theory.png       with the true advantage the prefix is enough
  ctpo theory --distance 1e-3 --draws 200                  averages over problems; the bias is first order
"""


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "theory",
        help="exact bias and variance of the objectives on policies small enough to enumerate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--vocab", type=int, default=2, metavar="V", help="actions (default 2); V^T up to about a million")
    add("--horizon", type=int, default=8, metavar="T", help="length of a response (default 8)")
    add("--policy", default="random", metavar="POLICY", help="random, adversarial or a file (default random)")
    add("--sharing", default="tabular", metavar="SHARING", help="shared parameters (default tabular)")
    add("--distance", type=float, default=0.3, help="of pi's logits from b's (default 0.3)")
    add("--spread", type=float, default=1.0, help="standard deviation of b's logits (default 1)")
    add("--reward", default="random", metavar="REWARD", help="default random")
    add("--advantage", default="terminal", metavar="ADVANTAGE", help="default terminal")
    add(
        "--baseline", type=float, metavar="X", help="of the terminal advantage (default: mean reward under b)"
    )
    add("--against", default="cumulative", metavar="FAMILY", help="whom the adversarial policy is against")
    add("--seed", type=int, default=0, help="of the random problem (default 0)")
    add("--draws", type=int, default=1, metavar="K", help="average over K problems, seeds SEED, SEED+1, …")
    add(
        "--family",
        action="append",
        metavar="NAME",
        help="only these families; 'none' for none (default: all)",
    )
    add(
        "--objective",
        action="append",
        default=[],
        metavar="NAME[?KNOB=VALUE&…]",
        help="presets, with trust region",
    )
    add(
        "--trajectories",
        type=int,
        nargs="+",
        default=[64, 4096],
        metavar="N",
        help="sample sizes at which to print the mean squared error (default 64 4096)",
    )
    add("--json", action="store_true", help="print JSON instead of tables")
    add(
        "--figure", type=Path, metavar="FILE", help="draw the analysis of the first problem to a .png or .svg"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Enumerate as the command line says."""
    if args.draws < 1:
        raise UserError(f"--draws {args.draws} is out of range; use 1 or more")
    if min(args.trajectories) < 1:
        raise UserError(f"--trajectories {min(args.trajectories)} is out of range; use 1 or more")
    from ctpo.lab.theory import Setup, analyse

    chosen = {field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)}
    from_file = Path(args.policy).suffix in (".json", ".npz")
    setup = Setup(**{**chosen, "policy": "random"} if from_file else chosen)
    analyses = []
    for seed in range(args.seed, args.seed + args.draws):
        problem = _problem(dataclasses.replace(setup, seed=seed), args.policy if from_file else None)
        analyses.append(analyse(problem, _estimators(args, problem)))
    if args.figure is not None:
        from ctpo.lab.theory.figure import draw

        draw(analyses[0], args.figure, _title(args, problem))
    if args.json:
        print(json.dumps(_report(args, problem, analyses), indent=2))
    else:
        from ctpo.cli.theory_tables import print_tables

        print_tables(_title(args, problem), analyses, args.trajectories, args.figure)
    return 0


def _problem(setup: Setup, file: str | None) -> Problem:
    from ctpo.lab.theory import read_tables

    return setup.problem() if file is None else setup.given(read_tables(Path(file)))


def _estimators(args: argparse.Namespace, problem: Problem) -> list[Estimator]:
    from ctpo.lab.theory import FAMILIES, objective_estimator
    from ctpo.objectives.checks import choice

    families = [] if args.family == ["none"] else args.family or list(FAMILIES)
    names = [*families, *args.objective]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        # The unclipped family `sequence` shares its name with a preset.
        raise UserError(
            f"{min(repeated)!r} is given twice; name families with --family, or spell a knob of the preset"
        )
    try:
        chosen = [FAMILIES[choice("--family", name, FAMILIES)] for name in families]
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from None
    chosen += [objective_estimator(spec, problem) for spec in args.objective]
    if not chosen:
        raise UserError("--family none leaves nothing to enumerate; add --objective NAME")
    return chosen


def _title(args: argparse.Namespace, problem: Problem) -> str:
    tree = problem.tree
    seeds = f"seed {args.seed}" if args.draws == 1 else f"seeds {args.seed}-{args.seed + args.draws - 1}"
    drawn = f"{args.policy} policy, distance {args.distance:g}, {args.reward} reward"
    source = f"policies of {args.policy}" if Path(args.policy).suffix in (".json", ".npz") else drawn
    return (
        f"V={tree.vocab}, T={tree.horizon} ({tree.trajectories:,} trajectories), "
        f"{source}, {problem.target.sharing.name}, {problem.advantage} advantage, {seeds}"
    )


def _report(args: argparse.Namespace, problem: Problem, analyses: list[Analysis]) -> dict[str, Any]:
    from ctpo.lab.theory.draws import average

    keep = ("sharing", "distance", "spread", "reward", "advantage", "baseline", "against", "seed", "draws")
    settings = {"vocab": problem.tree.vocab, "horizon": problem.tree.horizon, "policy": args.policy}
    settings |= {name: getattr(args, name) for name in keep}
    sizes = tuple(args.trajectories)
    report: dict[str, Any] = {"settings": settings, "draws": [a.as_dict(sizes) for a in analyses]}
    if len(analyses) > 1:
        report["trajectories"] = list(sizes)
        report["average"] = [vars(row) for row in average(analyses, sizes)]
    return report
