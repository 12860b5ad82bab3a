"""Continuous-time models: vector fields `field(t, y, args) -> dy/dt`, and what follows them.

A field is what `diffrax.ODETerm` takes. `solve` follows one over an interval; `flow` makes a
`driftlab.Dynamics` of it. diffrax itself is imported when something is solved.
"""

from driftlab.flows.dynamics import FlowState, flow
from driftlab.flows.gradient import gradient_flow, preconditioned_gradient_flow
from driftlab.flows.order import fitted_order, observed_orders
from driftlab.flows.solve import (
    NONFINITE,
    RESULTS,
    SMALLEST_STEP,
    SOLVED,
    SOLVER_FAILED,
    STEP_LIMIT,
    Solved,
    solve,
)
from driftlab.flows.vector_field import Flow

__all__ = [
    "NONFINITE",
    "RESULTS",
    "SMALLEST_STEP",
    "SOLVED",
    "SOLVER_FAILED",
    "STEP_LIMIT",
    "Flow",
    "FlowState",
    "Solved",
    "fitted_order",
    "flow",
    "gradient_flow",
    "observed_orders",
    "preconditioned_gradient_flow",
    "solve",
]
