"""The one exception that a user, not a programmer, is meant to read."""


class UserError(Exception):
    """Bad input, stated in one line that names the file and the remedy.

    Command lines print it as `error: ...` and exit with status 2.
    """
