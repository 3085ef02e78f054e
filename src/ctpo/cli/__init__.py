"""The `ctpo` command: one module a subcommand.

Each has `register(subparsers)` and `run(args) -> exit code`.
"""
