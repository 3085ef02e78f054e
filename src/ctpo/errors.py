"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """What was asked cannot be done as asked; the message is one line: what, its value, how to mend it.

    The command line prints it and exits with code 2. Any other exception is a defect and keeps its traceback.
    """

    of_one_process = False
    """Whether, of several processes, only this one may have met it; else the main one alone tells."""
