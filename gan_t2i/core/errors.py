"""The errors that a user can cause. Each carries one clear sentence and the exit code of the command line."""


class GanT2IError(ValueError):
    """A fault in the data, the files or the run. The message says what, where and what is allowed."""

    exit_code = 1


class UsageError(GanT2IError):
    """A wrong argument, configuration key or name."""

    exit_code = 2
