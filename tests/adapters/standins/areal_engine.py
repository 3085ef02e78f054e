"""AReaL's package of engines, which imports each when it is asked for, from the module that a table names."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY_IMPORTS = {
    "FSDPPPOActor": "areal.engine.fsdp_engine",
    "MegatronPPOActor": "areal.engine.megatron_engine",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(name)
    return getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)
