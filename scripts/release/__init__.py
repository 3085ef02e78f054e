"""What makes and tries a release; CONTRIBUTING.md says when."""
