"""The one exception for mistakes that the user can correct."""


class UserError(ValueError):
    """What was asked cannot be done as it was asked.

    The message is one line: what is wrong, its value, and how to correct it. The command line prints it and exits
    with code 2. Every other exception is a defect of the library and keeps its traceback.
    """

    of_one_process = False
    """Whether a single process may have met the error alone, such as a full disk. Only the main process reports
    errors that all processes meet alike."""
