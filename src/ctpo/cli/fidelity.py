"""`ctpo fidelity`: which objective suits a pair of policies, answered without training."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.cli.quiet import quieten, sole_use
from ctpo.cli.table import table
from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.checkpoints import all_checkpoints, step_of
from ctpo.runs.directory import RunDirectory
from ctpo.tasks.arithmetic import SHIPPED_MODELS
from ctpo.training.config.recipe import (
    EMBEDDED_MODEL,
    Recipe,
    embedded_recipe,
    merge,
    parse_overrides,
    read_recipe,
)
from ctpo.training.config.sources import check_presets, preset_knobs
from ctpo.training.config.trust import check_recipe

_DESCRIPTION: Final = """\
Sample responses from two policies, and say for every objective how its gradient on the responses of the one compares
with the on-policy gradient of the other. No training is needed. docs/how-to/fidelity.md defines the figures.

BEHAVIOUR samples and TARGET is updated. Each is a run's directory (its trained model), a checkpoint, a model's
directory, or a shipped model (`embedded`). One run and --lag N take the run's last policy as the target, and as the
behaviour policy the checkpoint N rollout batches before it. Several lags show how the figures change with the drift.

The task, the advantages and the temperature come from RECIPE and key=value, else from the run that holds TARGET or
BEHAVIOUR, else from the embedded recipe. All objectives get the reduction of the recipe's objective.
"""
_EPILOG: Final = """\
examples:
  ctpo fidelity runs/NAME --lag 4                           the last policy of a run, and an older one
  ctpo fidelity runs/NAME --lags 1,2,4,8                    and several older ones
  ctpo fidelity runs/NAME/checkpoint-64 runs/NAME --recommend
  ctpo fidelity embedded runs/NAME --objective ctpo --objective 'ctpo?log_low=0.25&log_high=0.5&log_dual=0.5'
  ctpo fidelity A B recipe.yaml max_completion_length=512 --lengths 100,300 --problems 64
The same command goes on where it was interrupted.
"""
DEFAULT_OBJECTIVES: Final = (
    "reinforce",
    "grpo",
    "grpo?ratio_low=0.8&ratio_high=4&ratio_dual=10",
    "cispo",
    "gspo",
    "ctpo",
    "ctpo?log_low=0.25&log_high=0.5&log_dual=0.5",
    "ctpo-fixed",
    "ctpo-decay?surrogate=stop-gradient&power=0&log_low=20&log_high=1.6",
    "sequence",
    "minpro",
    "sapo",
)
"""What is compared if no objective is named; the recipe's own is added."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo fidelity`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add = parser.add_argument
    add(
        "words",
        nargs="+",
        metavar="BEHAVIOUR TARGET [RECIPE] [key=value]",
        help="the two policies, and the task",
    )
    add(
        "--lag",
        "--lags",
        metavar="N[,N…]",
        help="rollout batches between the policies of one run; with several, figures by drift",
    )
    add(
        "--objective",
        action="append",
        metavar="NAME[?KNOB=VALUE&…]",
        help="an objective to compare; may be repeated (default: a list of common ones)",
    )
    add(
        "--problems",
        type=int,
        default=128,
        metavar="N",
        help="problems that both policies answer (default 128)",
    )
    add("--batch-size", type=int, default=64, metavar="B", help="responses of one batch (default 64)")
    add("--blocks", type=int, default=8, metavar="K", help="blocks of problems, for the errors (default 8)")
    add(
        "--directions",
        type=int,
        metavar="P",
        help="random directions of the sketch; 0 for exact gradients (default: 0 up to a million parameters, else 16)",
    )
    add(
        "--lengths",
        metavar="EDGES",
        help="edges of the bins of response length, such as 100,300 (default: thirds)",
    )
    add("--seed", type=int, default=0, help="of problems, responses and directions (default 0)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="where samples and results are kept (default: below fidelity/ in the run of TARGET, or here)",
    )
    add("--recommend", action="store_true", help="say which objectives are within noise of the best")
    add("--figure", type=Path, metavar="FILE", help="draw the figures to a .png or .svg")
    add("--json", action="store_true", help="print fidelity.json instead of tables")
    add(
        "--trust",
        action="store_true",
        help="run the code and obey the unsafe settings that the recipe or the run names",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print the figures."""
    require("ctpo fidelity", "compare", "transformers", "trl", "pydantic", "yaml", "rich", "scipy")
    behaviours, target, keys = _resolve(args)
    objectives = _objectives(args.objective, keys)
    lengths = _lengths(args.lengths)
    from ctpo.training.config.settings import check

    _, settings = check(keys)
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    with console.status("loading torch and transformers …") as status:
        quieten()
        from ctpo.lab.fidelity import Sizes, fidelity

        sizes = Sizes(
            problems=args.problems,
            batch=args.batch_size,
            blocks=args.blocks,
            directions=args.directions,
            lengths=lengths,
            seed=args.seed,
        )
        sizes.check(settings.get("num_generations", 8))
        output = args.output or _home(target)
        with sole_use(output):
            result = fidelity(
                behaviours,
                target,
                keys,
                objectives,
                output=output,
                sizes=sizes,
                progress=lambda stage, done, of: status.update(f"{stage}: {done} of {of}"),
            )
    if args.figure is not None:
        from ctpo.lab.fidelity.figure import draw

        draw(result, args.figure)
    if args.json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return 0
    _print(result)
    for pair in result["pairs"] if args.recommend else ():
        _print_recommendation(pair)
    if args.recommend:
        print(result["rule"])
    print(f"everything: {output / 'fidelity.json'}" + (f"; figure: {args.figure}" if args.figure else ""))
    return 0


def _resolve(args: argparse.Namespace) -> tuple[list[str], str, dict[str, Any]]:
    """The behaviour policies, the target and the keys of the recipe. Imports nothing heavy."""
    names = [word for word in args.words if "=" not in word or os.path.exists(word)]
    overrides = parse_overrides(word for word in args.words if word not in names)
    wanted = 2 if args.lag is None else 1
    if not wanted <= len(names) <= wanted + 1:
        what = "BEHAVIOUR and TARGET" if args.lag is None else "one RUN with --lag"
        raise UserError(
            f"{len(names)} names are given ({' '.join(names)}); give {what}, and at most one recipe after them"
        )
    recipe = Path(names[wanted]) if len(names) > wanted else None
    if args.lag is not None:
        behaviours, target = _lagged(Path(names[0]), _lags(args.lag))
        sources = [names[0]]
    else:
        behaviours, target = [_model(names[0])], _model(names[1])
        sources = [names[1], names[0]]
    held = next((run for run in map(_run_of, sources) if run is not None), None)
    if recipe is not None:
        keys, origin = read_recipe(recipe), recipe
    elif held is not None:
        keys, origin = held.read_recipe(), held.config
    elif EMBEDDED_MODEL in sources or "task" not in overrides:
        keys, origin = embedded_recipe(), None
    else:
        keys, origin = {}, None
    keys = merge(keys, overrides)
    if origin is not None and not args.trust:
        check_recipe(keys, overrides, origin)
    return behaviours, target, {**keys, "output_dir": "unnamed", "model": target}


def _run_of(name: str) -> RunDirectory | None:
    """The run that a name means or lies in."""
    path = Path(name)
    for folder in (path, path.parent):
        run = RunDirectory(folder)
        if name not in SHIPPED_MODELS and folder.is_dir() and run.config.is_file():
            return run
    return None


def _model(name: str) -> str:
    """The directory of a policy's weights."""
    run = RunDirectory(Path(name))
    if name in SHIPPED_MODELS or not run.holds_a_run:
        Recipe(model=name)  # refuses what is neither a model directory nor a hub id
        return name
    if run.model.is_dir():
        return str(run.model)
    checkpoints = all_checkpoints(run.path)
    if not checkpoints:
        raise UserError(f"{name} has neither a trained model nor a checkpoint; wait for one, or name a model")
    return str(checkpoints[0])


def _lags(text: str) -> list[int]:
    try:
        lags = [int(each) for each in text.split(",")]
    except ValueError:
        raise UserError(f"--lag {text} are no whole numbers; write for example 1,2,4,8") from None
    wrong = [lag for lag in lags if lag < 1 or lags.count(lag) > 1]
    if wrong:
        raise UserError(
            f"--lag {text}: {wrong[0]} is no distance or is given twice; use different ones from 1"
        )
    return lags


def _lagged(path: Path, lags: Sequence[int]) -> tuple[list[str], str]:
    """The policies of one run, so many rollout batches before the last, and the last."""
    run = RunDirectory(path)
    if not run.config.is_file():
        raise UserError(f"{path} is no run (it holds no config.yaml); --lag takes the checkpoints of a run")
    checkpoints = {step_of(each): each for each in all_checkpoints(path)}
    if not checkpoints:
        raise UserError(f"{path} has no checkpoints; train with save_steps, or name two models")
    from ctpo.training.config.settings import build

    _, config = build({**run.read_recipe(), "output_dir": "unnamed"})
    updates = config.updates_per_rollout_batch
    last = max(checkpoints)
    missing = [lag for lag in lags if last - lag * updates not in checkpoints]
    if missing:
        there = ", ".join(
            str((last - each) // updates) for each in sorted(checkpoints, reverse=True) if each != last
        )
        raise UserError(
            f"--lag {missing[0]}: {path} has no checkpoint {missing[0]} rollout batches before its last; there "
            f"are some {there or 0} before (see save_steps and save_total_limit)"
        )
    return [str(checkpoints[last - lag * updates]) for lag in lags], str(checkpoints[last])


def _objectives(given: Sequence[str] | None, keys: Mapping[str, Any]) -> list[str]:
    """The objectives to compare, checked by name."""
    if given is None:
        own = str(keys.get("objective") or "ctpo")
        knobs = keys.get("objective_kwargs")
        # A run's own recipe spells every knob out; the reduction is that of all objectives anyway.
        usual = {**preset_knobs().get(own, {}), "reduction": None}
        changed = {name: value for name, value in dict(knobs or {}).items() if value != usual.get(name)}
        changed.pop("reduction", None)
        if changed:
            own += "?" + "&".join(f"{name}={value}" for name, value in changed.items())
        return list(dict.fromkeys([own, *DEFAULT_OBJECTIVES]))
    check_presets(given)
    repeated = [spec for spec in given if list(given).count(spec) > 1]
    if repeated:
        raise UserError(f"--objective {repeated[0]} is given twice; drop one")
    return list(given)


def _lengths(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in (text or "").split(",") if each)
    except ValueError:
        raise UserError(f"--lengths {text} are no whole numbers; write for example 100,300") from None


def _home(target: str) -> Path:
    """Where a measurement is kept if nothing else is wished: in the run of the target, where `ctpo report` looks."""
    run = _run_of(target)
    parts = [part for part in Path(target).parts if part not in ("/", "..")]
    if run is None:
        return Path("fidelity") / ("-".join(parts[-2:]) or "model")
    return run.path / "fidelity" / (parts[-1] if parts else "model")


def _print(result: Mapping[str, Any]) -> None:
    """Print what was measured, and its tables: of one pair, or of several by drift."""
    reference, sketch, sizes, pairs = result["reference"], result["sketch"], result["sizes"], result["pairs"]
    for pair in pairs:
        drift = pair["drift"]
        print(
            f"{pair['behaviour']} -> {result['target']}, task {result['task']}: {sizes['responses']} responses of "
            f"each, {pair['tokens']:.0f} tokens; reward {pair['reward']:.3f} -> {result['reward']:.3f}\n"
            f"drift: log ratio per token ± {drift['token_std']:.3g}, per response {drift['log_ratio_mean']:+.3g} ± "
            f"{drift['log_ratio_std']:.3g} nats"
        )
    if result["left_out"]:
        print(f"left out: {result['left_out']} problems that leave no room in the model's context")
    print(
        f"reference: cosine {_pm(reference['cosine'])} with the true gradient, from its {reference['parts']} parts; "
        "cosines are divided by it"
    )
    norms = (
        "exact gradients"
        if sketch["norm"] is None
        else f"norms × {sketch['norm']:.2f} at {sizes['directions']} directions"
    )
    print(
        f"derivatives: {100 * sketch['error']:.2g} % from autograd; {norms}; engine and forward pass differ by at most "
        f"{sketch['engine_gap']:.1g} nats"
    )
    for kind in result["on_policy"]:
        print(f"\n{_figures(result, kind) if len(pairs) == 1 else _by_drift(result, kind)}")
    for pair in pairs:
        of = "" if len(pairs) == 1 else f", drift {pair['drift']['log_ratio_std']:.3g} nats"
        positions = result["positions"][-6:]
        head = [f"effective share of the weights at t{of}", *map(str, positions)]
        rows = [
            [row["objective"], *(_pm(each) for each in row["ess"][-len(positions) :])]
            for row in pair["objectives"]
        ]
        print(f"\n{table(head, rows)}")
        if len(pair["lengths"]) > 1:
            for kind in result["on_policy"]:
                print(f"\n{_lengths_table(result, pair, kind, of)}")
    print(
        f"\n± standard error, over problems and over the reference's parts\ncos of {sizes['batch']}: of one batch's "
        "gradient with the on-policy gradient; cos of E, component of E: of the expectation, the component relative "
        "to on-policy\nS/N: on-policy responses that one response is worth; pull: component under advantages that "
        "know nothing, relative to the on-policy signal"
    )


def _figures(result: Mapping[str, Any], kind: str) -> str:
    """The table of one pair."""
    own = result["on_policy"][kind]
    head = ["objective", *_titles(result).values()]
    rows = [["on-policy", _pm(own["batch_cosine"]), "1", "1", "1", "0"], []]
    for row in result["pairs"][0]["objectives"]:
        rows.append([row["objective"], *(_pm(row["advantages"][kind][key]) for key in _titles(result))])
    return table(head, rows, title=f"advantages per {kind}")


def _titles(result: Mapping[str, Any]) -> dict[str, str]:
    """The figures of an objective, and what heads them."""
    return {
        "batch_cosine": f"cos of {result['sizes']['batch']}",
        "cosine": "cos of E",
        "component": "component of E",
        "signal_to_noise": "S/N",
        "pull": "pull",
    }


def _by_drift(result: Mapping[str, Any], kind: str) -> str:
    """One table for each figure of several pairs, a column for each."""
    pairs = result["pairs"]
    drifts = [f"{pair['drift']['log_ratio_std']:.3g} nats" for pair in pairs]
    titles = _titles(result)
    titles["batch_cosine"] += f"; on-policy {_pm(result['on_policy'][kind]['batch_cosine'])}"
    tables = []
    for key, title in titles.items():
        rows = [
            [
                first["objective"],
                *(_pm(pair["objectives"][place]["advantages"][kind][key]) for pair in pairs),
            ]
            for place, first in enumerate(pairs[0]["objectives"])
        ]
        tables.append(table([f"{title}, by drift", *drifts], rows, title=f"advantages per {kind}"))
    return "\n\n".join(tables)


def _lengths_table(result: Mapping[str, Any], pair: Mapping[str, Any], kind: str, of: str) -> str:
    """The cosine of a batch and the component, by response length. fidelity.json holds the other figures too."""
    names = [
        f"{each['from']}–{'' if each['below'] is None else each['below'] - 1}" for each in pair["lengths"]
    ]
    rows = [
        ["responses", *(str(each["responses"]) for each in pair["lengths"])],
        ["log ratio, std", *(_short(each["log_ratio_std"]) for each in pair["lengths"])],
    ]
    for key in ("batch_cosine", "component"):
        rows += [[], [_titles(result)[key]]]
        for row in pair["objectives"]:
            rows.append([row["objective"], *(_pm(each[key]) for each in row["advantages"][kind]["lengths"])])
    return table([f"by length{of}", *names], rows, title=f"advantages per {kind}")


def _print_recommendation(pair: Mapping[str, Any]) -> None:
    for kind, recommended in pair["recommended"].items():
        if recommended["best"] is None:
            print(
                f"\nAfter {pair['behaviour']}, with advantages per {kind}, no objective can be recommended: "
                "the samples do not determine the cosines; take more problems."
            )
            continue
        print(
            f"\nAfter {pair['behaviour']}, with advantages per {kind}, these objectives are within noise of the best, "
            f"{recommended['best']}: {', '.join(recommended['within_noise'])}."
        )


def _pm(estimate: Mapping[str, float | None]) -> str:
    value, error = estimate["value"], estimate["stderr"]
    if value is None:
        return "–"
    return f"{value:.2f} ± {error:.2f}" if error is not None else f"{value:.2f}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
