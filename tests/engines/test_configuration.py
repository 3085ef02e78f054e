"""The keys of a translated recipe in verl's own configuration. Needs verl."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from ctpo.engines.verl.site import environment
from ctpo.errors import UserError

from .test_translation import ACTOR, ROLLOUT, translated

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transfer_queue") is None,
    reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)",
)


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`configuration`, with the environment that every process of verl has."""
    for name, value in environment(accelerator=False).items():
        monkeypatch.setenv(name, value)
    from ctpo.engines.verl import plugin  # noqa: F401
    from ctpo.engines.verl.configuration import configuration

    return configuration


def test_verl_takes_the_embedded_recipe(configuration: Any) -> None:
    config = configuration(translated())
    actor = config.actor_rollout_ref.actor
    assert actor.policy_loss.preset == "ctpo"
    assert actor.optim.lr == 3e-4
    assert config.actor_rollout_ref.rollout.name == "ctpo_cpu"


def test_every_key_of_every_kind_is_one_of_verls(configuration: Any) -> None:
    """Keys without `+` must exist, so that a key that another verl has renamed is noticed."""
    configuration(
        translated(
            anchor="old", beta=0.01, objective="dr-grpo", lr_scheduler_type="cosine", rollout_batch_size=64
        )
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({f"{ACTOR}.optim.lrr": 1}, rf"engine\.{ACTOR}\.optim\.lrr is no key of verl .*{ACTOR}\.optim\.lr\?"),
        ({f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": None}, "refuses the configuration"),
    ],
)
def test_mistakes_are_one_line(configuration: Any, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        configuration(translated(overrides=overrides))
    assert "\n" not in str(refusal.value)
