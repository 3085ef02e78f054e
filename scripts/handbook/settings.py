"""The page of all settings: the keys of a recipe, the fields of `CTPOConfig`, and those of a critic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import MISSING
from typing import Final

from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.older import OLDER_KEYS
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.sources import trainer_fields, trl_fields
from handbook.markdown import escaped, linked, shown, table

_INTRODUCTION: Final = """\
# Settings

A recipe is one flat list of `key: value`. Each key is either a key of the recipe, or a field of `CTPOConfig`. A Python
script gives the latter to `CTPOConfig`. This page is made from the code.

```yaml
task: arithmetic
objective: ctpo
objective_kwargs: {log_high: 0.1}
generation_batch_size: 64
per_device_train_batch_size: 8
num_generations: 8
rollout_batches: 4
```

`ctpo train --show my.yaml` prints the recipe as it would run. [Training](training.md) explains what the settings do.
"""


def page() -> str:
    """The whole page in Markdown."""
    return "\n".join(
        [
            _INTRODUCTION,
            "## Keys of a recipe\n",
            table(["key", "default", "meaning"], _recipe_keys()),
            "## Fields of CTPOConfig\n",
            "These are the fields that `CTPOConfig` has beside those of TRL.\n",
            table(["field", "default", "meaning"], _own_fields()),
            "## Fields with another default than in TRL\n",
            table(["field", "here", "TRL"], _other_defaults()),
            "## Fields of TRL\n",
            "TRL's own documentation explains these. They mean the same here.\n",
            ", ".join(f"`{name}`" for name in sorted(trl_fields())) + "\n",
            "## Keys of older releases\n",
            "Scripts for earlier releases of TRL and transformers may carry these keys. Each gets a sentence that says",
            "what became of it ([porting](../start/porting.md#keys-of-older-releases)).\n",
            ", ".join(f"`{name}`" for name in sorted(OLDER_KEYS)) + "\n",
        ]
    )


def own_names() -> list[str]:
    """The fields of `CTPOConfig` that TRL does not have, and that are not of an older release."""
    return [name for name in trainer_fields() if name not in trl_fields() and name not in OLDER_KEYS]


def _recipe_keys() -> Iterator[list[str]]:
    for each in dataclasses.fields(Recipe):
        yield [f"`{each.name}`", shown(each.default), linked(escaped(str(each.metadata["help"])))]


def _own_fields() -> Iterator[list[str]]:
    fields = {each.name: each for each in dataclasses.fields(CTPOConfig)}
    for name in own_names():
        about = str(fields[name].metadata["help"])
        yield [f"`{name}`", shown(fields[name].default), linked(escaped(about))]


def _other_defaults() -> Iterator[list[str]]:
    """Fields of TRL whose default differs. Those of TRL's loss are left out: they are None and choose the objective."""
    for name, inherited in trl_fields().items():
        own = trainer_fields()[name]
        if own.default != inherited.default and MISSING not in (own.default, inherited.default):
            yield [f"`{name}`", shown(own.default), shown(inherited.default)]
