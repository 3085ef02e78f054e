"""Settings that transformers refuses only once training has begun, refused before: optimizer, schedule and loggers."""

from __future__ import annotations

from typing import Final

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.integrations.integration_utils import get_available_reporting_integrations

from ctpo.errors import UserError

_UNLISTED: Final = {"flyte"}
"""Loggers that transformers never counts among the available ones."""


def check_loggers(config: TrainingArguments) -> None:
    """Refuse loggers whose package is missing.

    Raises:
        UserError: naming the logger.
    """
    known = INTEGRATION_TO_CALLBACK.keys() - _UNLISTED
    missing = sorted(known.intersection(config.report_to) - set(get_available_reporting_integrations()))
    if missing:
        raise UserError(
            f"report_to={missing[0]} needs the package {missing[0]}; install it or leave the key out"
        )


def check_optimizer(trainer: Trainer) -> None:
    """Refuse an optimizer that transformers cannot make.

    Raises:
        UserError: with the reason and the settings.
    """
    config = trainer.args
    if "layerwise" not in config.optim:  # those register hooks on the parameters, once is enough
        try:
            trainer.get_optimizer_cls_and_kwargs(config, trainer.model)
        except ImportError as error:
            raise UserError(
                f"optim={config.optim.value} is refused ({_line(error)}); install that, or choose another"
            ) from None
        except ValueError as error:
            raise UserError(
                f"optim={config.optim.value} with optim_args={config.optim_args!r} is refused ({_line(error)}); "
                "write optim_args as key=value,key=value"
            ) from None


def check_schedule(config: TrainingArguments) -> None:
    """Refuse a schedule of the learning rate that transformers cannot make.

    Raises:
        UserError: with the reason and the settings.
    """
    try:
        get_scheduler(
            config.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate),
            num_warmup_steps=0,
            num_training_steps=1,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(
            f"lr_scheduler_type={config.lr_scheduler_type.value} with lr_scheduler_kwargs={config.lr_scheduler_kwargs} "
            f"is refused ({_line(error)}); give it the arguments that it has in transformers"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
