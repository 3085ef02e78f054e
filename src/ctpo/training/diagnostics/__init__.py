"""What a run records about drift of its policy and about what its objective clips (docs/reference/diagnostics.md)."""
