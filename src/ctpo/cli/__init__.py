"""The `ctpo` command. There is one module per subcommand.

Each of these has `add_arguments(parser)` and `run(args)`, which returns the exit code. A module imports heavy libraries
inside `run` only, and only after it has checked its arguments.
"""
