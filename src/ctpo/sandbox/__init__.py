"""Runs untrusted Python programs, each in a confined process of its own; see docs/explanation/sandbox.md."""

from ctpo.sandbox.result import SandboxResult, SandboxUnavailable, Status
from ctpo.sandbox.sandbox import Sandbox

__all__ = ["Sandbox", "SandboxResult", "SandboxUnavailable", "Status"]
