"""The two ways a run ends badly: the input is wrong (exit 2) or the work failed (exit 1)."""


class InputError(ValueError):
    """The user's input is wrong. One line: which field, what is wrong, what to write instead."""


class RunError(RuntimeError):
    """The work failed on good input: NaN in training, a child process that died, a full disk."""


class ModelFailed(RunError):
    """One of several models could not be measured; `model` is its name."""

    def __init__(self, model: str, reason: str):
        super().__init__(f"{model}: {reason}")
        self.model, self.reason = model, reason
