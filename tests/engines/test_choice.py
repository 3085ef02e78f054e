"""The engine that a recipe chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctpo.engines.choice import EngineChoice, engine_keys, split_engine
from ctpo.errors import UserError
from ctpo.training.config.recipe import merge, parse_overrides
from ctpo.training.config.trust import check_recipe


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


def test_keys_and_choice_are_each_others_inverse() -> None:
    keys = {"engine": "verl", "ray_address": "auto", "engine.trainer.nnodes": 2}
    assert engine_keys(split_engine(keys)[0]) == keys
    keys = {"engine": "verl", "trainer_mode": "separate_async", "max_staleness": 3}
    assert engine_keys(split_engine(keys)[0]) == keys
    assert engine_keys(EngineChoice()) == {}


@pytest.mark.parametrize(
    ("keys", "asks"),
    [
        ({"engine.trainer.nnodes": 2}, False),
        ({"engine.data.custom_cls.path": "theirs.py"}, True),
        ({"engine.actor_rollout_ref.model.trust_remote_code": True}, True),
        ({"ray_address": "ray://elsewhere:10001"}, True),
    ],
)
def test_a_file_may_not_name_code_or_clusters_alone(keys: dict[str, object], asks: bool) -> None:
    keys = {"engine": "verl", **keys}
    check_recipe(keys, keys, Path("theirs.yaml"))  # the command line has them too
    if asks:
        with pytest.raises(UserError, match=r"theirs\.yaml sets .*--trust"):
            check_recipe(keys, {}, Path("theirs.yaml"))
    else:
        check_recipe(keys, {}, Path("theirs.yaml"))


def test_a_recipe_without_an_engine_trains_here() -> None:
    assert split_engine({"seed": 1}) == (EngineChoice(), {"seed": 1})
    assert split_engine({"engine": "local"})[0].name == "local"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"engine": "verll"}, "engine='verll' is unknown"),
        ({"engine": {"a": 1}}, "is unknown"),
        ({"ray_address": "auto"}, "ray_address=auto has no effect"),
        ({"engine.trainer.nnodes": 2}, r"engine\.trainer\.nnodes=2 has no effect"),
        ({"trainer_mode": "separate_async"}, "trainer_mode=separate_async has no effect"),
        ({"engine": "verl", "ray_address": 3}, "ray_address=3 is not of type str"),
        ({"engine": "verl", "trainer_mode": "async"}, "use sync or separate_async"),
        ({"engine": "verl", "max_staleness": 3}, "has no effect with trainer_mode=sync"),
        ({"engine": "verl", "trainer_mode": "separate_async", "max_staleness": 0}, "from 1 up"),
        ({"engine": "verl", "trainer_mode": "separate_async", "rollout_processes": 1.5}, "from 1 up"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_engine(keys)
