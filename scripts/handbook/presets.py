"""The page of all presets: formula, source, knobs with units, and how each is chosen."""

from __future__ import annotations

from typing import Any, Final

from ctpo.objectives import Objective, preset, preset_defaults, preset_names
from ctpo.objectives.cpu.supported import objective_refusal
from ctpo.objectives.presets import preset_description
from handbook.markdown import escaped, linked, shown, table

UNITS: Final = {
    "log_low": "nats, times t^power",
    "log_high": "nats, times t^power",
    "log_dual": "nats, times t^power; None: no dual clip",
    "power": "exponent of t",
    "log_drift": "nats per token",
    "ratio_low": "distance below a ratio of 1",
    "ratio_high": "distance above a ratio of 1",
    "ratio_dual": "a ratio, at least 1; None: no dual clip",
    "ratio_low_pos": "distance below a ratio of 1, where A ≥ 0",
    "ratio_high_pos": "distance above a ratio of 1, where A ≥ 0",
    "ratio_low_neg": "distance below a ratio of 1, where A < 0",
    "ratio_high_neg": "distance above a ratio of 1, where A < 0",
    "length": "tokens",
    "scale": "nats",
    "centre": "nats, times t^power",
    "share": "share of tokens, 0 to 1",
    "dual": "True or False",
    "decay": "factor per token, 0 to 1",
    "q": "share of tokens that the gate closes, 0 to 1",
    "ema": "factor per call, 0 to 1; None: no average",
    "across_ranks": "True or False",
    "delta": "unit of the statistic in the formula",
    "delta_low": "unit of the statistic in the formula",
    "delta_high": "unit of the statistic in the formula",
    "tau": "factor of d²/2; for a gate, a slope",
    "tau_pos": "slope where A > 0",
    "tau_neg": "slope elsewhere",
    "k_pos": "exponent where A ≥ 0",
    "k_neg": "exponent where A < 0",
    "lambda_pos": "rate where A ≥ 0",
    "lambda_neg": "rate where A < 0",
    "w_min": "factor, 0 to 1",
    "budget": "a difference of probabilities",
    "level": "`token` or `sequence`",
    "surrogate": "`min-clip` or `stop-gradient`",
    "beta_low": "share of the gradient that is kept",
    "beta_high": "share of the gradient that is kept",
    "moment": "nats²",
    "reduction": "name of a reduction",
    "norm_length": "tokens, for the reduction seq-mean-token-sum-norm",
    "on_bad": "`neutralise` or `raise`",
    "backend": "`auto`, `native` or `compose`",
}
"""What a number of each knob means."""

_SHARED: Final = ("norm_length", "on_bad", "backend")

_INTRODUCTION: Final = """\
# Presets

A preset is a named objective with the settings of its paper. This page is made from the code, so it shows the presets,
the defaults and the formulas of the version that you read about.

In the formulas, t is the position of a token among those that the model sampled, from 1. T is the number of them in
the response. r_t is the ratio of the token, d_t = log r_t, c_t = Σ_{s≤t} d_s and ρ_t = e^{c_t}. A is the advantage, and
sg stops the gradient. The formula is the loss of one token; the reduction says how tokens are averaged.

[Which objective should I use?](../how-to/choose-objective.md) compares them. [Objectives](objectives.md) explains the
parts that they are composed of, and [Where the presets come from](preset-sources.md) names papers and deviations.
"""


def page() -> str:
    """The whole page in Markdown."""
    names = preset_names()
    index = table(
        ["preset", "the loss of one token", "C pass"],
        ([f"[`{name}`](#{name})", escaped(_first(name)), _native(preset(name))] for name in names),
    )
    shared = table(
        ["knob", "default", "unit"],
        ([f"`{knob}`", shown(preset_defaults("ctpo")[knob]), UNITS[knob]] for knob in _SHARED),
    )
    return "\n".join(
        [
            _INTRODUCTION,
            index,
            "Every preset also has these knobs. `neutralise` takes the ratio of a token with unusable log-probs as 1,",
            "and counts it.\n",
            shared,
            *(_section(name) for name in names),
        ]
    )


def _section(name: str) -> str:
    """The section of one preset."""
    about = linked(escaped(preset_description(name)))
    knobs = {knob: value for knob, value in preset_defaults(name).items() if knob not in _SHARED}
    rows = ([f"`{knob}`", shown(value), UNITS[knob]] for knob, value in knobs.items())
    objective = preset(name)
    needs = "\n\nA call needs `turn_ids`, the turn of each token." if objective.needs_turns else ""
    batch = (
        ""
        if objective.row_wise
        else "\n\nIt looks at the whole minibatch, so micro-batches must be whole, or `ema` be set."
    )
    return "\n".join(
        [
            f"## `{name}` {{ #{name} }}\n",
            f"{about}{needs}{batch}\n",
            table(["knob", "default", "unit"], rows),
            _snippets(name, knobs),
        ]
    )


def _snippets(name: str, knobs: dict[str, Any]) -> str:
    """How to choose the preset, in Python and in a recipe, with its first numeric knob written out."""
    knob, value = next(
        ((key, value) for key, value in knobs.items() if type(value) is float), ("reduction", "sum")
    )
    value = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return (
        f'```python\npreset("{name}", {knob}={value})  # from ctpo.objectives import preset\n'
        f'CTPOConfig("out", objective="{name}", objective_kwargs={{"{knob}": {value}}})\n```\n\n'
        f"```\nctpo train objective={name} objective_kwargs.{knob}={value.strip(chr(39))}\n```\n"
    )


def _first(name: str) -> str:
    """The first paragraph of a preset's description."""
    return " ".join(preset_description(name).split("\n\n")[0].split())


def _native(objective: Objective) -> str:
    parts = (objective.ratio, objective.trust_region, objective.surrogate)
    return "no" if objective_refusal(*parts) else "yes"
