"""The two ways a run ends badly: the input is wrong (exit 2) or the work failed (exit 1)."""


class InputError(ValueError):
    """The user's input is wrong. One line: which field, what is wrong, what to write instead."""


class RunError(RuntimeError):
    """The work failed on good input: NaN in training, a child process that died, a full disk."""
