"""`ctpo theory`: exact bias and variance of the ratio families on policies small enough to enumerate."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from ctpo.cli.table import table
from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.training.config.sources import check_presets

if TYPE_CHECKING:
    from ctpo.lab.theory import Analysis, CriticRow, Estimator, Problem, Pull, Setup

_DESCRIPTION: Final = """\
Enumerate every response of a small autoregressive policy. For each ratio family, and for any objective of the
library, print the exact bias of its gradient estimate against grad J(pi) and against its own target, its variance,
and its mean squared error, all in units of |grad J|. docs/explanation/theory.md explains the figures.

POLICY is one of
  random         the logits of pi are those of b + distance x normal
  adversarial    +- distance, with the signs that make the bias of --against large
  FILE           a JSON or npz file with tables of logits `behaviour` and `target` [rows, V], and optionally
                 `reward` [V^T] and `horizon`
SHARING is tabular (one row of logits for each prefix), position, bigram or stationary (one row for all).
REWARD is random, binary, first or last (1 where that action is 0), or count (the share of actions that are 0).
ADVANTAGE is terminal (R - baseline at every token), behaviour (A^b) or target (A^pi).
"""
_EPILOG: Final = """\
examples:
  ctpo theory                                              the families, V=2, T=8
  ctpo theory --objective ctpo --objective 'ctpo?log_high=0.2&log_dual=0.2' --objective grpo
  ctpo theory --advantage target --figure theory.png       with the true advantage the prefix is enough
  ctpo theory --pull --objective ctpo --objective grpo     the force that clipping leaves, whatever the reward
  ctpo theory --critic --family cumulative                 what a critic's error costs
  ctpo theory --distance 1e-3 --draws 200                  averages over problems; the bias is first order
"""
_EXACT: Final = 1e-12
"""A bias below this is the rounding of float64."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo theory`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
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
    add(
        "--against",
        default="cumulative",
        metavar="FAMILY",
        help="the family whose bias the adversarial policy makes large (default cumulative)",
    )
    add("--seed", type=int, default=0, help="of the random problem (default 0)")
    add("--draws", type=int, default=1, metavar="K", help="average over K problems, seeds SEED, SEED+1, …")
    add(
        "--family",
        action="append",
        metavar="NAME",
        help="only this family; may be repeated; 'none' for none (default: all families)",
    )
    add(
        "--objective",
        action="append",
        default=[],
        metavar="NAME[?KNOB=VALUE&…]",
        help="also this preset, with its trust region; may be repeated",
    )
    add(
        "--trajectories",
        type=int,
        nargs="+",
        default=[64, 4096],
        metavar="N",
        help="sample sizes for which the mean squared error is printed (default 64 4096)",
    )
    add(
        "--pull",
        action="store_true",
        help="also the pull of clipping under advantages that say nothing, and what the weights cost in samples",
    )
    add(
        "--critic",
        action="store_true",
        help="also the prefix ratio with a critic's advantages, by the critic's error and lambda (first problem)",
    )
    add("--json", action="store_true", help="print JSON instead of tables")
    add(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw the analysis of the first problem to a .png or .svg (needs the extra [report])",
    )


def run(args: argparse.Namespace) -> int:
    """Enumerate, and print the result."""
    if args.draws < 1:
        raise UserError(f"--draws {args.draws} is out of range; use 1 or more")
    if min(args.trajectories) < 1:
        raise UserError(f"--trajectories {min(args.trajectories)} is out of range; use 1 or more")
    if args.figure is not None:
        require("ctpo theory --figure", "report", "matplotlib")
    check_presets(args.objective)
    from ctpo.lab.theory import Setup, analyse, critic_rows, pulls

    chosen = {field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)}
    from_file = Path(args.policy).suffix in (".json", ".npz")
    setup = Setup(**{**chosen, "policy": "random"} if from_file else chosen)
    analyses, pulled = [], []
    valued: list[CriticRow] = []
    for seed in range(args.seed, args.seed + args.draws):
        problem = _problem(dataclasses.replace(setup, seed=seed), args.policy if from_file else None)
        estimators = _estimators(args, problem)
        analyses.append(analyse(problem, estimators))
        if args.pull:
            pulled.append(pulls(problem, estimators))
        if args.critic and seed == args.seed:
            valued = critic_rows(problem, seed=seed)
    if args.figure is not None:
        from ctpo.lab.theory.figure import draw

        draw(analyses[0], args.figure, _title(args, problem))
    if args.json:
        report = _report(args, problem, analyses)
        for figures, rows in zip(report["draws"], pulled, strict=False):
            figures["pull"] = [{key: _finite(value) for key, value in vars(row).items()} for row in rows]
        if valued:
            report["critic"] = [vars(row) for row in valued]
        print(json.dumps(report, indent=2))
    else:
        print(_title(args, problem))
        if len(analyses) == 1:
            _print_one(analyses[0], args.trajectories)
        else:
            _print_averages(analyses, args.trajectories)
        if pulled:
            _print_pulls(pulled)
        if valued:
            _print_critic(valued)
        if args.figure is not None:
            print(f"figure: {args.figure}")
    return 0


def _problem(setup: Setup, file: str | None) -> Problem:
    from ctpo.lab.theory import read_tables

    return setup.problem() if file is None else setup.problem_of(read_tables(Path(file)))


def _estimators(args: argparse.Namespace, problem: Problem) -> list[Estimator]:
    from ctpo.lab.theory import FAMILIES, objective_estimator
    from ctpo.objectives.checks import choice

    families = [] if args.family == ["none"] else args.family or list(FAMILIES)
    names = [*families, *args.objective]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        # The family `sequence`, which has no clipping, shares its name with a preset.
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
    from ctpo.lab.theory.averages import average

    keep = ("sharing", "distance", "spread", "reward", "advantage", "baseline", "against", "seed", "draws")
    settings = {"vocab": problem.tree.vocab, "horizon": problem.tree.horizon, "policy": args.policy}
    settings |= {name: getattr(args, name) for name in keep}
    sizes = tuple(args.trajectories)
    report: dict[str, Any] = {"settings": settings, "draws": [a.as_dict(sizes) for a in analyses]}
    if len(analyses) > 1:
        report["trajectories"] = list(sizes)
        report["average"] = [vars(row) for row in average(analyses, sizes)]
    return report


def _print_one(analysis: Analysis, sizes: Sequence[int]) -> None:
    distance, spread = analysis.distance, analysis.spread
    before, after = analysis.rewards
    print(
        f"J(b) {before:.4g}, J(pi) {after:.4g}, |grad J| {analysis.gradient_norm:.4g}; "
        f"total variation of a step at most {distance['total_variation']:.3g}, KL(b, pi) {distance['kl']:.3g} nats, "
        f"effective sample share {distance['ess']:.3g}"
    )
    print(
        f"log ratio of the prefix: mean ± std {spread.mean[0]:+.3f} ± {spread.std[0]:.3f} at t=1, "
        f"{spread.mean[-1]:+.3f} ± {spread.std[-1]:.3f} at t={len(spread.std)}; "
        f"exponent of the std in t {spread.exponent:.2f}"
    )
    if analysis.unit != analysis.gradient_norm:
        print("grad J is 0, so the figures below are absolute and not in its units")
    head = ["estimator", "bias", "own", "cos", "var", "t=1", f"t={len(spread.std)}"]
    rows = [
        [
            row.name,
            _bias(row.bias),
            _bias(row.own_bias),
            f"{row.cosine:.3f}",
            *map(_short, (row.variance, row.term_variance[0], row.term_variance[-1])),
            *(_short(row.error(n)) for n in sizes),
        ]
        for row in analysis.rows
    ]
    print(f"\n{table([*head, *(f'N={_short(n)}' for n in sizes)], rows)}\n")
    print("least mean squared error: " + _ranges(analysis.best()))
    print(
        "bias, own: against grad J and against the family's own target, in |grad J|\n"
        "cos: cosine between the expected gradient and grad J\n"
        "var, t=: variance from one trajectory, of the sum and of the term at t, in |grad J|²\n"
        "N=: mean squared error from N trajectories, in |grad J|²"
    )


def _print_averages(analyses: list[Analysis], sizes: Sequence[int]) -> None:
    from ctpo.lab.theory.averages import average

    head = ["estimator", "bias", "own", "cos", "var", *(f"best {_short(n)}" for n in sizes)]
    rows = [
        [
            row.name,
            _with_error(row.bias, row.bias_stderr),
            _with_error(row.own_bias, row.own_bias_stderr),
            f"{row.cosine:.3f}",
            _short(row.variance),
            *(f"{100 * share:.0f} %" for share in row.wins),
        ]
        for row in average(analyses, sizes)
    ]
    print(f"\n{table(head, rows)}\n")
    exponent = fmean(analysis.spread.exponent for analysis in analyses)
    print(f"exponent of the log ratio's std in t: mean {exponent:.2f}")
    print(
        "means over problems; biases ± standard error, in |grad J|\n"
        "best N: share of the problems in which the estimator has the least mean squared error from N trajectories"
    )


def _print_pulls(draws: list[list[Pull]]) -> None:
    rows = []
    for each in zip(*draws, strict=True):
        size, cost = (fmean(getattr(row, name) for row in each) for name in ("size", "cost"))
        back = [row.back for row in each if row.back == row.back]
        rows.append(
            [
                each[0].name,
                "none" if size < _EXACT else _short(size),
                f"{fmean(back):+.3f}" if back else "",
                _short(cost),
            ]
        )
    print(f"\n{table(['estimator', 'pull', 'back', 'cost'], rows)}\n")
    print(
        "pull: length of the expected gradient if advantages are independent of everything, in |grad J|\n"
        "back: its cosine with -grad KL(b, pi), the way back to b\n"
        "cost: responses that are worth one without weights: mean over t of E[w²] / E[w]², w the weight where A > 0"
    )


def _print_critic(rows: list[CriticRow]) -> None:
    cells = [
        [
            f"{row.error:g}",
            f"{row.trace:g}",
            "v-trace" if row.corrected else "gae",
            _bias(row.bias),
            f"{row.cosine:.3f}",
            _short(row.variance),
        ]
        for row in rows
    ]
    print(f"\n{table(['error', 'lambda', 'advantage', 'bias', 'cos', 'var'], cells)}\n")
    print(
        "the estimate with the prefix ratio and a critic's advantages\n"
        "error: of V against V^pi at a prefix, in standard deviations of the reward\n"
        "v-trace: later steps are weighed by importance, without bars"
    )


def _finite(value: Any) -> Any:
    """The value, with None for a number that is not finite."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _ranges(best: list[tuple[float, str]]) -> str:
    """The best estimator by sample size, as text: "a up to N = 84, b up to N = 293, then c"."""
    if len(best) == 1:
        return f"{best[0][1]} at every N"
    ends = [f"{name} up to N = {_short(following)}" for (_, name), (following, _) in pairwise(best)]
    return ", ".join(ends) + f", then {best[-1][1]}"


def _bias(value: float) -> str:
    return "exact" if value < _EXACT else _short(value)


def _with_error(value: float, stderr: float) -> str:
    return "exact" if value < _EXACT else f"{_short(value)} ± {stderr:.1g}"


def _short(value: float) -> str:
    """A number with three digits; whole numbers below a million are written in full."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
