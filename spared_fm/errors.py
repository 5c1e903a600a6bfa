"""The one exception every room may raise at a user."""


class InputError(ValueError):
    """Bad input or a refused action: one line that names the file (or thing) and the mend.

    The command line prints the message alone and exits with code 1. Anything else that is raised is a bug.
    """
