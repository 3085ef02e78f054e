"""verl's configuration with the keys of a translated recipe in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ctpo.adapters.verl_recipe import compose
from ctpo.engines.verl.site import VERSION
from ctpo.errors import UserError


def configuration(keys: Mapping[str, Any]) -> Any:
    """verl's configuration with these keys, checked as verl itself does before a run.

    Args:
        keys: from `ctpo.engines.verl.translation.translate`. A name that begins with `+` is added.

    Raises:
        UserError: if verl does not know a key, or refuses a value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = compose([])
    known = set(_names(OmegaConf.to_container(config)))
    for name, value in keys.items():
        plain = name.lstrip("+")
        if not name.startswith("+") and plain not in known and OmegaConf.select(config, plain) is None:
            near = difflib.get_close_matches(plain, known, n=1)
            hint = f"did you mean engine.{near[0]}?" if near else f"write engine.+{plain} to add it"
            raise UserError(f"engine.{plain} is no key of verl {VERSION}; {hint}")
        try:
            OmegaConf.update(config, plain, value, merge=False, force_add=True)
        except OmegaConfBaseException as error:
            raise UserError(
                f"engine.{plain}={value!r} is refused by verl ({_line(error)}); correct it"
            ) from None
    try:
        OmegaConf.to_container(config, resolve=True)
        validate_config(config, need_reference_policy(config), need_critic(config))
        for part in (config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm):
            omega_conf_to_dataclass(part)
    except (ValueError, AssertionError, TypeError, OmegaConfBaseException) as error:
        raise UserError(
            f"verl {VERSION} refuses the configuration: {_line(error)}; change engine.*"
        ) from None
    return config


def _names(value: Any, prefix: str = "") -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield f"{prefix}{name}"
        yield from _names(inner, f"{prefix}{name}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
