"""The places of verl that have no public way in, each changed in one line and only in the version that was read.

With another version of verl nothing is patched and the run ends, because a patch that no longer fits fails silently.
"""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any

from ctpo.engines.verl.schedule import ScheduleConfig, scheduler
from ctpo.engines.verl.site import CPU_ROLLOUT, VERSION
from ctpo.errors import UserError


def check_version() -> None:
    """Check that this is the version of verl that the patches were written for.

    Raises:
        UserError: if it is another one.
    """
    found = version("verl")
    if found != VERSION:
        raise UserError(
            f"verl {found} is installed, and engine=verl was written for {VERSION}; "
            f"pip install --no-deps verl=={VERSION}"
        )


def patch_everywhere() -> None:
    """Patch what stands in the way on every machine.

    verl imports a class of TRL that TRL 1 does not have, wherever TRL is installed. Its FSDP engine has schedules of
    its own only.
    """
    check_version()
    from verl.models.transformers import monkey_patch
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    monkey_patch.is_trl_available = lambda: False
    original = FSDPEngine._build_lr_scheduler
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def build(engine: Any, optimizer: Any) -> Any:
        if isinstance(engine.optimizer_config, ScheduleConfig):
            return scheduler(engine, optimizer)
        return original(engine, optimizer)

    FSDPEngine._build_lr_scheduler = build


def patch_for_cpu(adapter: str) -> None:
    """Patch what stands in the way on a machine without an accelerator.

    verl asks torch for the backend "cpu:gloo,cpu:gloo", which torch refuses. Its table of adapters in the workers has
    no function that adds to it. It loads the model of a critic with FlashAttention only. It moves a reference model to
    pinned memory of the CPU, which only a machine with an accelerator has.

    Args:
        adapter: the full name of the class that hands weights from a training worker to our rollout server.
    """
    check_version()
    from verl.utils import model
    from verl.utils.distributed import initialize_global_process_group_ray as initialise
    from verl.workers.engine.fsdp import transformer_impl
    from verl.workers.rollout import base

    if initialise.__defaults__ not in ((None, None), (None, "cpu:gloo")):
        raise UserError(
            f"verl's initialize_global_process_group_ray has the defaults {initialise.__defaults__}, not those of verl "
            f"{VERSION}; install verl=={VERSION}"
        )
    initialise.__defaults__ = (None, "cpu:gloo")
    base._ROLLOUT_REGISTRY[(CPU_ROLLOUT, "async")] = adapter
    model.load_valuehead_model = _load_value_model
    transformer_impl.CPUOffloadPolicy = _stay


def _stay(pin_memory: bool) -> None:
    """No policy of moving weights, in place of that to memory which is pinned."""


def _load_value_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
    """The model of a critic: the trunk of a language model with a head of one value per token."""
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
    )
