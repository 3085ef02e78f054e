"""Optional dependencies: what is missing, and which extra of the package brings it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from ctpo.errors import UserError

_PACKAGES: Final = {"yaml": "pyyaml"}
"""Packages whose name differs from the module's in more than hyphens."""


class MissingExtra(UserError, ImportError):
    """A package that an extra of `ctpo` brings is not installed; the message says how to install it."""


def require(what: str, extra: str, *modules: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        what: what needs them, as the message's first words: "ctpo train".
        extra: the extra of `ctpo` that brings them: "train".
        modules: names of top-level modules.

    Raises:
        MissingExtra: for the first one that is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            package = _PACKAGES.get(module, module.replace("_", "-"))
            raise MissingExtra(
                f"{what} needs {package}, which the extra [{extra}] brings: pip install 'ctpo[{extra}]'"
            )
