"""The one exception that means: the user's input is at fault, and here is the remedy."""


class InputError(ValueError):
    """Bad input. The message names the thing, its value and the remedy; the command line prints it and exits with 2."""
