"""Runs untrusted Python programs, each alone and confined; see docs/sandbox.md."""

from ctpo.sandbox.sandbox import Sandbox
from ctpo.sandbox.result import SandboxResult, SandboxUnavailable, Status

__all__ = ["Sandbox", "SandboxResult", "SandboxUnavailable", "Status"]
