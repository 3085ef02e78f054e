"""The plan of a comparison: objectives × regimes × settings × seeds, read from YAML and checked.

Every objective is tuned by the same rule over the same number of settings, on seeds that the tests never use. The tests
are named before anything runs. Both are enforced here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ctpo.errors import UserError
from ctpo.runs.identity import recorded_name
from ctpo.training.config.recipe import ENGINE, embedded_recipe, merge, read_recipe

SCORES = ("auc", "final")
_KEYS = ("recipe", "common", "objectives", "regimes", "tune", "seeds", "select_by", "compare", "secondary")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One objective with the settings that it is tuned over."""

    name: str
    keys: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...]
    """The settings to choose from; a single empty one if nothing is tuned."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One difference to test: a score of one objective minus that of another, in one regime."""

    one: str
    other: str
    regime: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a comparison, checked."""

    base: Mapping[str, Any]
    """The recipe and the settings that all runs have in common."""
    arms: tuple[Arm, ...]
    regimes: Mapping[str, Mapping[str, Any]]
    like: Mapping[str, str]
    """The regimes in which nothing is tuned, each with the regime whose settings it takes."""
    tuning_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    select_by: str
    """The score whose mean over the tuning seeds chooses a setting."""
    questions: tuple[Question, ...]
    """The tests that count. The correction counts all of them."""
    secondary: tuple[Question, ...]
    """Further tests, which are not corrected."""

    @property
    def tuned(self) -> bool:
        """Whether there is more than one setting to choose from."""
        return len(self.arms[0].grid) > 1

    @property
    def runs(self) -> int:
        """The number of all runs, tuning included."""
        settings = len(self.arms[0].grid) * len(self.tuning_seeds) if self.tuned else 0
        tuned = len(self.regimes) - len(self.like)
        return len(self.arms) * (tuned * settings + len(self.regimes) * len(self.test_seeds))

    def arm(self, name: str) -> Arm:
        """Return the arm with this name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the matrix."""

    regime: str
    arm: str
    setting: Mapping[str, Any]
    seed: int
    keys: Mapping[str, Any] = field(repr=False)
    """The complete recipe of the run, except for its directory."""

    @property
    def folder(self) -> Path:
        """The run's folder below the folder `runs` of the comparison."""
        return Path(self.regime) / self.arm / _slug(self.setting) / f"seed-{self.seed}"


def cell(plan: Plan, regime: str, arm: Arm, setting: Mapping[str, Any], seed: int) -> Cell:
    """Return the run of one arm in one regime with one setting and seed."""
    keys = dict(plan.base)
    for overrides in (plan.regimes[regime], arm.keys, setting, {"seed": seed}):
        keys = merge(keys, overrides)
    return Cell(regime=regime, arm=arm.name, setting=setting, seed=seed, keys=keys)


def read_plan(path: Path) -> Plan:
    """Return the plan that a YAML file describes.

    Raises:
        UserError: if the file cannot be read, a part is missing or has the wrong type, the objectives have different
            numbers of settings, a seed serves both tuning and tests, or a pair names an unknown objective.
    """
    content = read_recipe(path)
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a comparison has {', '.join(_KEYS)}")
    shared = _mapping(path, "tune", content.get("tune", {}))
    arms = tuple(
        _arm(path, str(name), _mapping(path, f"objectives.{name}", keys), shared)
        for name, keys in _mapping(path, "objectives", content.get("objectives")).items()
    )
    _check_budgets(path, arms)
    regimes, like = _regimes(path, _mapping(path, "regimes", content.get("regimes", {"all": {}})))
    names = [arm.name for arm in arms]
    tuning, test = _seeds(path, content.get("seeds"), tuned=len(arms[0].grid) > 1)
    return Plan(
        base=merge(_base(path, content.get("recipe")), _mapping(path, "common", content.get("common", {}))),
        arms=arms,
        regimes=regimes,
        like=like,
        tuning_seeds=tuning,
        test_seeds=test,
        select_by=_one_of(path, "select_by", content.get("select_by", SCORES[0]), SCORES),
        questions=_questions(path, "compare", content.get("compare", _with_the_first(names)), names, regimes),
        secondary=_questions(path, "secondary", content.get("secondary", []), names, regimes),
    )


def _base(path: Path, recipe: Any) -> dict[str, Any]:
    if recipe is None:
        return embedded_recipe()
    named = Path(str(recipe))
    return read_recipe(named if named.is_absolute() else path.parent / named)


def _arm(path: Path, name: str, keys: Mapping[str, Any], shared: Mapping[str, Any]) -> Arm:
    own = _mapping(path, f"objectives.{name}.tune", keys.get("tune", {}))
    axes: list[list[Mapping[str, Any]]] = []
    for key, values in {**shared, **own}.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: tune.{key}={values!r} is not a list of values; write [1e-4, 3e-4]")
        axes.append([_override(str(key), value) for value in values])
    grid = []
    for choice in itertools.product(*axes):
        setting: dict[str, Any] = {}
        for overrides in choice:
            setting = merge(setting, overrides)
        grid.append(setting)
    keys = {key: value for key, value in keys.items() if key != "tune"}
    return Arm(name=name, keys={"objective": name, **keys}, grid=tuple(grid))


def _override(key: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = key.partition(".")
    return {outer: {inner: value}} if dot and outer != ENGINE else {key: value}


def _check_budgets(path: Path, arms: tuple[Arm, ...]) -> None:
    if not arms:
        raise UserError(f"{path}: objectives is empty; name at least one")
    budgets = {arm.name: len(arm.grid) for arm in arms}
    if len(set(budgets.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in budgets.items())
        raise UserError(
            f"{path}: the objectives are tuned over different numbers of settings ({counts}); give each the same number"
        )


def _seeds(path: Path, value: Any, *, tuned: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    seeds = _mapping(path, "seeds", value)
    parts = {}
    for name in ("tune", "test"):
        values = seeds.get(name, [])
        if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
            raise UserError(f"{path}: seeds.{name}={values!r} is not a list of seeds; write [0, 1, 2]")
        if len(set(values)) < len(values):
            raise UserError(f"{path}: seeds.{name}={values} names a seed twice; a seed is one run")
        parts[name] = tuple(values)
    if not parts["test"]:
        raise UserError(f"{path}: seeds.test is empty; name the seeds the objectives are compared on")
    if tuned and not parts["tune"]:
        raise UserError(f"{path}: something is tuned, but seeds.tune is empty; name the seeds to tune on")
    both = sorted(set(parts["tune"]) & set(parts["test"]))
    if both:
        raise UserError(f"{path}: seed {both[0]} is used for tuning and for the test; keep them apart")
    return parts["tune"], parts["test"]


def _regimes(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    regimes = {str(name): dict(_mapping(path, f"regimes.{name}", keys or {})) for name, keys in given.items()}
    like = {name: str(keys.pop("like")) for name, keys in regimes.items() if "like" in keys}
    for name, other in like.items():
        _one_of(path, f"regimes.{name}.like", other, [each for each in regimes if each not in like])
    return dict(regimes), like


def _with_the_first(names: list[str]) -> list[list[str]]:
    return [[names[0], other] for other in names[1:]]


def _questions(
    path: Path, key: str, pairs: Any, names: list[str], regimes: Mapping[str, Any]
) -> tuple[Question, ...]:
    """Return the tests of the pairs. A pair is tested in every regime and by both scores, unless it names some."""
    questions = []
    for each in pairs if isinstance(pairs, list) else [pairs]:
        pair = each.get("pair") if isinstance(each, Mapping) else each
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path}: {key} holds {each!r}; write pairs of objectives, [[ctpo, grpo]]")
        one, other = (_one_of(path, key, name, names) for name in pair)
        if one == other:
            raise UserError(f"{path}: {key} holds {pair!r}; an objective does not differ from itself")
        limits = each if isinstance(each, Mapping) else {}
        if unknown := sorted(set(limits) - {"pair", "regimes", "scores"}):
            raise UserError(f"{path}: {key} holds {unknown[0]!r}; a comparison has pair, regimes, scores")
        where, by = limits.get("regimes", list(regimes)), limits.get("scores", list(SCORES))
        questions += [
            Question(one=one, other=other, regime=regime, score=score)
            for regime in [_one_of(path, f"{key}.regimes", name, list(regimes)) for name in where]
            for score in [_one_of(path, f"{key}.scores", name, SCORES) for name in by]
        ]
    return tuple(questions)


def _mapping(path: Path, key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        raise UserError(f"{path}: {key} is missing; see `ctpo compare --help` for an example")
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {key}={value!r} is not a mapping; write one `name: …` per line")
    return value


def _one_of(path: Path, key: str, value: Any, known: tuple[str, ...] | list[str]) -> str:
    if value not in known:
        raise UserError(f"{path}: {key} names {value!r}, which is not one of {', '.join(known)}")
    return str(value)


def _slug(setting: Mapping[str, Any]) -> str:
    """Return a folder name that gives the setting, such as `learning_rate=0.0003,high=0.1`."""
    words = []
    for key, value in setting.items():
        inner = value.items() if isinstance(value, Mapping) else [(key, value)]
        words += [f"{recorded_name(name)}={_word(each)}" for name, each in inner]
    return ",".join(words).replace("/", "_") or "untuned"


def _word(value: Any) -> str:
    """Return a value as YAML writes it, without the parts after the first space."""
    return _scalar(value) if isinstance(value, (str, float, int)) else str(yaml.safe_dump(value).split()[0])


@lru_cache(typed=True)
def _scalar(value: str | float) -> str:
    return str(yaml.safe_dump(value).split()[0])
