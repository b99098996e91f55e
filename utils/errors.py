"""The two ways in which a run may end badly; `main.py` turns each into one line and an exit code."""


class InputError(Exception):
    """Something that the user gave cannot be used: an option, a file or a folder (exit code 2)."""


class RunError(Exception):
    """The run itself failed, for instance because the loss became NaN (exit code 1)."""
