"""Keys are checked without torch and TRL, with the same names, types and defaults as an import gives."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from ctpo import CTPOConfig
from ctpo.errors import UserError
from ctpo.objectives import (
    Gate,
    RolloutCorrection,
    Weight,
    correction_defaults,
    correction_names,
    preset_defaults,
    preset_names,
)
from ctpo.training.config.older import OLDER_KEYS
from ctpo.training.config.recipe import embedded_recipe, merge
from ctpo.training.config.settings import build, resolved
from ctpo.training.config.sources import Field, correction_knobs, preset_knobs, trainer_fields, trl_fields

HEAVY = {"torch", "transformers", "trl", "accelerate", "datasets"}


@pytest.mark.parametrize(("owner", "read"), [(GRPOConfig, trl_fields), (CTPOConfig, trainer_fields)])
def test_fields_read_from_the_sources_are_those_of_the_class(owner: Any, read: Any) -> None:
    hints = typing.get_type_hints(owner)
    expected = {each.name: each for each in dataclasses.fields(owner) if each.init}
    read_fields: dict[str, Field] = dict(read())
    assert read_fields.keys() == expected.keys()
    unread = {name for name, each in read_fields.items() if each.default != expected[name].default}
    assert unread == {name for name in unread if read_fields[name].default is dataclasses.MISSING}
    assert not unread & {"seed", "learning_rate", "num_generations", "epsilon", "loss_type", "temperature"}
    assert len(unread - set(OLDER_KEYS)) < 12, unread
    for name, each in read_fields.items():
        if "Any" not in str(each.type):
            assert each.type == hints[name], name
    assert read_fields["learning_rate"].type is float


def test_knobs_read_from_the_sources_are_those_of_the_presets() -> None:
    assert dict(preset_knobs()) == {name: preset_defaults(name) for name in preset_names()}
    assert dict(correction_knobs()) == {name: correction_defaults(name) for name in correction_names()}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"objective": "gspo", "objective_kwargs": {"reduction": "token-mean"}, "seed": 5},
        {"objective": "grpo", "objective_kwargs": '{"reduction": "token-mean"}', "learning_rate": "1e-4"},
    ],
)
def test_what_is_shown_is_what_a_run_uses(overrides: dict[str, Any]) -> None:
    keys = {**merge(embedded_recipe(), overrides), "output_dir": "unused"}
    shown, (recipe, config) = resolved(keys), build(keys)
    fields = {each.name for each in dataclasses.fields(recipe)}
    for name, value in shown.items():
        if name != "objective_kwargs":
            assert value == getattr(recipe if name in fields else config, name), name
    assert shown["objective_kwargs"] == config.objective_settings()
    assert {"seed", "learning_rate", "temperature", "top_p", "top_k"} <= shown.keys()
    assert "output_dir" not in shown


ANSWERS = [
    (["--show"], 0, "objective: ctpo"),
    (["lerning_rate=1"], 2, "did you mean 'learning_rate'?"),
    (["objective=ctpoo"], 2, "did you mean 'ctpo'?"),
    (["objective=DPPO"], 2, "did you mean 'dppo-tv'?"),
    (["lora_r=8"], 2, "lora_r=8 has no effect without use_peft=true; set that too, or drop it"),
    (["use_peft=true", "lora_dropout=1"], 2, "lora_dropout=1 is out of range"),
    (["curriculum.medium=1"], 2, "curriculum.medium is unknown; known: easy, normal, hard"),
    (["objective_kwargs.log_hihg=1"], 2, "did you mean 'log_high'?"),
    (
        ["objective=gspo", "objective_kwargs.power=1"],
        2,
        "objective_kwargs.power is unknown for objective='gspo'",
    ),
    (["objective_kwargs={"], 2, "objective_kwargs='{' is not JSON"),
    (["task=sudoku"], 2, "task 'sudoku' is unknown"),
    (["learning_rate=fast"], 2, "learning_rate='fast' is not of type float"),
    (["generation_batch_size=500"], 2, "use generation_batch_size="),
    (["epsilon=0.1", "objective=ctpo"], 2, "Drop epsilon to train ctpo"),
    (["behaviour_lag=-1"], 2, "behaviour_lag=-1 is negative"),
    (["rollout_correction=ice"], 2, "rollout_correction='ice' is not one of auto, recipe, tis, icepop"),
    (["rollout_correction=tis", "rollout_correction_kwargs.low=1"], 2, "kwargs.low is unknown for 'tis'"),
    (["advantages=grpo"], 2, "advantages='grpo' is not one of trl, rloo"),
]
"""Words after `ctpo train`, the exit code, and a part of what is printed."""
_PROGRAM = f"""
import contextlib, io, json, sys
from ctpo.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(["train", *words])
    print(json.dumps([code, out.getvalue(), sorted({HEAVY!r} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, str, list[str]]]:
    """The answers to all of them and what was imported by then, in a fresh interpreter, as this has everything."""
    asked = json.dumps([words for words, *_ in ANSWERS])
    done = subprocess.run([sys.executable, "-c", _PROGRAM, asked], capture_output=True, text=True, check=True)
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return [(code, printed, heavy) for code, printed, heavy in lines]


@pytest.mark.parametrize("row", range(len(ANSWERS)), ids=[" ".join(words) for words, *_ in ANSWERS])
def test_an_answer_that_needs_no_model_imports_nothing_heavy(
    answers: list[tuple[int, str, list[str]]], row: int
) -> None:
    _, expected, part = ANSWERS[row]
    code, printed, heavy = answers[row]
    assert (code, heavy) == (expected, [])
    assert part in printed


def test_knobs_under_their_old_names_are_taken_and_saved_under_the_new_ones() -> None:
    keys = merge(embedded_recipe(), {"objective": "gspo", "objective_kwargs": {"low": 0.01}})
    with pytest.warns(FutureWarning, match="low has a new name, ratio_low"):
        settings = resolved(keys)
    assert settings["objective_kwargs"]["ratio_low"] == 0.01
    assert "low" not in settings["objective_kwargs"]
    with pytest.raises(UserError, match="low: this is the old name of ratio_low"):
        resolved({**keys, "objective_kwargs": {"low": 0.01, "ratio_low": 0.02}})


def test_knobs_under_their_old_names_in_python(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="log_high"):
        config = CTPOConfig(str(tmp_path), use_cpu=True, objective_kwargs={"high": 0.2})
    assert config.objective_kwargs == {"log_high": 0.2}
    assert "high" not in config.objective_settings()


def test_a_correction_composed_in_a_recipe() -> None:
    correction = {
        "weight": {"level": "token", "cap": "2e0"},
        "gates": [{"statistic": "k3", "level": "max", "high": 0.1}],
        "veto": "1e-4",
        "denominator": "kept",
    }
    keys = {"anchor": "old", "rollout_correction": "custom", "rollout_correction_kwargs": correction}
    _, config = build(merge(embedded_recipe(), {**keys, "output_dir": "unused", "use_cpu": True}))
    assert config.build_correction() == RolloutCorrection(
        weight=Weight("token", 2.0), gates=(Gate("k3", "max", high=0.1),), veto=1e-4, denominator="kept"
    )
    with pytest.raises(UserError, match="gates: 'hihg' is not known; did you mean 'high'"):
        build(merge(embedded_recipe(), {**keys, "rollout_correction_kwargs": {"gates": [{"hihg": 1.0}]}}))
    # Another correction does not keep the knobs of the one before.
    assert "rollout_correction_kwargs" not in merge(keys, {"rollout_correction": "tis"})
