"""What all errors have in common that a user can mend."""


class UserError(Exception):
    """Something that can't be as the user wants it. The message says what was expected, what was found and what to do.

    The command line prints the message, without a traceback, and ends with exit code 2.
    """
