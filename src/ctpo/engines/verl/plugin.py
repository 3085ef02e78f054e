"""What every process of verl imports: `VERL_USE_EXTERNAL_MODULES` names this module.

On a machine without an accelerator (`VERL_PLATFORM=cpu`) it also registers the platform, the training engine, the
rollout server and the shipping of weights.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final

from ctpo.engines.verl.patches import check_version, patch_everywhere, patch_for_cpu
from ctpo.engines.verl.site import CPU_ROLLOUT
from ctpo.errors import UserError

_SERVER: Final = "ctpo.engines.verl.server"


def register() -> None:
    """Register everything that this process may need.

    Raises:
        UserError: if this is another version of verl.
    """
    check_version()
    on_cpu = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
    if on_cpu:
        import_module("ctpo.engines.verl.platform")  # before anything asks verl for its device
    import_module("ctpo.adapters.verl")
    patch_everywhere()
    if not on_cpu:
        return
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    import_module("ctpo.engines.verl.shipping")
    backends = ["fsdp", "fsdp2"]
    for kind, engine in (("language_model", FSDPEngineWithLMHead), ("value_model", FSDPEngineWithValueHead)):
        EngineRegistry.register(model_type=kind, backend=backends, device="cpu")(engine)
    # By name and when it is asked for, since a process may import that module before verl.
    RolloutReplicaRegistry.register(CPU_ROLLOUT, lambda: import_module(_SERVER).Replica)
    patch_for_cpu(f"{_SERVER}.WeightSender")


try:
    register()
except UserError as error:
    print(f"ctpo: {error}", file=sys.stderr)
    raise
