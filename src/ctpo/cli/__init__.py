"""The `ctpo` command: one module a subcommand, each with `register(subparsers)` and `run(args) -> exit code`."""
