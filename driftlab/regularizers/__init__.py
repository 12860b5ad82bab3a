"""What is added to a loss: functions `(params, batch) -> scalar` for `driftlab.regularized`."""

from driftlab.regularizers.gradient_norm import squared_gradient_norm

__all__ = ["squared_gradient_norm"]
