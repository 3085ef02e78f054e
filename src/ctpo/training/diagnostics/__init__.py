"""What a run records about the drift of its policy and about what its objective clips (docs/diagnostics.md)."""
