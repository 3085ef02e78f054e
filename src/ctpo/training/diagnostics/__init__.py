"""What a run records of its policy's drift and of what its objective does about it; equations: docs/diagnostics.md."""
