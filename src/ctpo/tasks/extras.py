"""Packages that only some tasks need."""

from __future__ import annotations

from importlib.util import find_spec

from ctpo.errors import UserError


def require(module: str, extra: str, what: str) -> None:
    """Refuse, naming the extra that brings it, where a package is not installed.

    Raises:
        UserError: if the module cannot be imported here.
    """
    if find_spec(module) is None:
        package = module.replace("_", "-")
        raise UserError(f"{what} needs {package}, which is not installed; pip install 'ctpo[{extra}]'")
