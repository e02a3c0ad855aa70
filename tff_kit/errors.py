"""The base class of all errors that a user can mend."""


class UserError(Exception):
    """An error that a user can mend. The message says what was expected, what was found and what to do.

    The command line prints the message, without a traceback, and ends with exit code 2.
    """
