"""How an evaluation ends before its tasks do."""


class ModelRefusedError(ValueError):
    """The model cannot be evaluated as asked for, and trying again will not change that. The message is the reason."""


class EvaluationError(RuntimeError):
    """The evaluation broke off, and another attempt may succeed. The message is the reason."""
