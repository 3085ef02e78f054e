"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """What was asked cannot be done as asked; the message is one line: what, its value, how to mend it.

    The command line prints it and exits with code 2. Any other exception is a defect and keeps its traceback.
    """
