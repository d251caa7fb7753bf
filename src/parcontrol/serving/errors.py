"""Why an answer is not given."""


class EndingError(RuntimeError):
    """The server ends before the answer is complete."""
