"""The engine that a recipe chooses."""

from __future__ import annotations

import pytest

from ctpo.engines.choice import EngineChoice, split_engine
from ctpo.errors import UserError
from ctpo.training.config.recipe import merge, parse_overrides


def test_the_words_of_a_command_line() -> None:
    words = ["engine=verl", "engine.actor_rollout_ref.actor.optim.lr=2e-4", "engine.+a.b=[1, 2]", "seed=3"]
    keys = merge(
        {"task": "arithmetic"}, parse_overrides([*words, "ray_address=auto", "objective_kwargs.power=1"])
    )
    choice, rest = split_engine(keys)
    assert choice == EngineChoice(
        name="verl",
        ray_address="auto",
        overrides={"actor_rollout_ref.actor.optim.lr": 2e-4, "+a.b": [1, 2]},
    )
    assert rest == {"task": "arithmetic", "seed": 3, "objective_kwargs": {"power": 1}}


def test_a_recipe_without_an_engine_trains_here() -> None:
    assert split_engine({"seed": 1}) == (EngineChoice(), {"seed": 1})
    assert split_engine({"engine": "local"})[0].name == "local"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"engine": "verll"}, "engine='verll' is unknown"),
        ({"engine": {"a": 1}}, "is unknown"),
        ({"ray_address": "auto"}, "ray_address=auto has no effect"),
        ({"engine.trainer.nnodes": 2}, "engine.trainer.nnodes has no effect"),
        ({"engine": "verl", "ray_address": 3}, "ray_address=3 is not of type str"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_engine(keys)
