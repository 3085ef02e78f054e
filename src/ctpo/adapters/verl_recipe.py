"""A dry run of a recipe for verl: compose its overrides with the installed verl and check them, without a GPU.

    python -m ctpo.adapters.verl_recipe recipes/paper-qwen3-4b [KEY=VALUE …]

It proves that verl's trainer can be imported, that every key exists in verl's configuration, and that verl's own
dataclasses and `validate_config` accept every value. It also proves that the loss is registered under the chosen name,
and that the agent loop knows its task. It does not prove that the run fits the GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctpo.adapters.shared import framework
from ctpo.errors import UserError

_INSTALL = "verl>=0.9.1"
_TRAINER = ("transfer_queue", "verl.trainer.ppo.v1", "verl.trainer.main_ppo")
"""What `main_ppo` imports once it runs. verl itself can be imported without them."""
FILE = "verl.overrides"


def read_overrides(folder: Path) -> list[str]:
    """The overrides of a recipe, without comments and empty lines.

    Raises:
        UserError: if there is no such file, or a key is set twice.
    """
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{folder / FILE} cannot be read ({error.strerror}); give a recipe's folder"
        ) from None
    overrides = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    keys = [line.partition("=")[0].lstrip("+") for line in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{folder / FILE}: {key} is set {keys.count(key)} times; keep one")
    return overrides


def compose(overrides: Sequence[str]) -> Any:
    """verl's `ppo_trainer` configuration with these overrides.

    Raises:
        UserError: for a key that verl does not have, or a value that it does not accept.
    """
    hydra = framework("hydra", _INSTALL)
    verl = framework("verl", _INSTALL)
    folder = str(Path(verl.__path__[0]) / "trainer" / "config")
    try:
        with hydra.initialize_config_dir(config_dir=folder, version_base=None):
            return hydra.compose(config_name="ppo_trainer", overrides=list(overrides))
    except framework("hydra.errors", _INSTALL).HydraException as error:
        raise UserError(" ".join(str(error).split())) from error


def check(folder: Path, extra: Sequence[str] = ()) -> Any:
    """The configuration of a recipe, after every check that verl makes before it needs a device.

    Args:
        folder: the recipe's folder.
        extra: further overrides, as on the command line of `main_ppo`.

    Raises:
        ImportError: if verl's trainer cannot be imported.
        UserError, ValueError, AssertionError: if verl or the objective refuses a setting.
    """
    os.environ.setdefault("CTPO_RECIPE", str(folder.resolve()))
    os.environ.setdefault("CTPO_DATA", "data")
    framework("ctpo.adapters.verl", _INSTALL)
    for name in _TRAINER:
        framework(name, f"what {name} names; verl's own requirements bring it")
    config = compose([*read_overrides(folder), *extra])
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    framework("omegaconf", _INSTALL).OmegaConf.to_container(config, resolve=True)
    utils = framework("verl.utils.config", _INSTALL)
    roles = framework("verl.trainer.ppo.utils", _INSTALL)
    utils.validate_config(config, roles.need_reference_policy(config), roles.need_critic(config))
    for part in (actor, rollout, config.algorithm):
        utils.omega_conf_to_dataclass(part)
    framework("verl.trainer.ppo.core_algos", _INSTALL).get_policy_loss_fn(actor.policy_loss.loss_mode)
    _check_agent(rollout.agent)
    _check_updates(config)
    return config


def _check_agent(agent: Any) -> None:
    """Make our agent loop's class and its orders, as every process of verl's does.

    Raises:
        UserError: if the file does not name the agent loop that the recipe asks for.
    """
    entries = framework("omegaconf", _INSTALL).OmegaConf.load(agent.agent_loop_config_path)
    found = [each for each in entries if each.name == agent.default_agent_loop]
    if not found:
        raise UserError(
            f"{agent.agent_loop_config_path} has no agent loop called {agent.default_agent_loop!r}; correct "
            "rollout.agent.default_agent_loop"
        )
    loop = framework("hydra.utils", _INSTALL).get_class(found[0]._target_)
    loop.check(found[0].orders)


def _check_updates(config: Any) -> None:
    """Refuse one update per batch with recomputed anchors, since every ratio would stay 1."""
    actor = config.actor_rollout_ref.actor
    updates = config.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs
    if updates == 1 and not config.algorithm.rollout_correction.bypass_mode:
        raise UserError(
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} makes one update per batch of "
            f"{config.data.train_batch_size} prompts, so every ratio stays 1; use a smaller minibatch"
        )


if __name__ == "__main__":
    composed = check(Path(sys.argv[1]), sys.argv[2:])
    keys = len(read_overrides(Path(sys.argv[1])))
    print(f"{sys.argv[1]}: {keys} overrides fit verl {framework('verl', _INSTALL).__version__}")
