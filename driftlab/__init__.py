"""driftlab: what an optimiser does that gradient flow does not."""

from driftlab import curvature, flows, manifolds, measures
from driftlab.dynamics import Dynamics, Snapshot, State, descent
from driftlab.flows import flow
from driftlab.game import Game, corrected
from driftlab.objective import Objective, regularized
from driftlab.play import alternating, runge_kutta, simultaneous
from driftlab.row_dynamics import row_descent
from driftlab.sampling import fixed_order, full_batch, shuffled_epochs, with_replacement
from driftlab.sweep import Grid, open_run, sweep

__version__ = "0.1.0"

__all__ = [
    "Dynamics",
    "Game",
    "Grid",
    "Objective",
    "Snapshot",
    "State",
    "alternating",
    "corrected",
    "curvature",
    "descent",
    "fixed_order",
    "flow",
    "flows",
    "full_batch",
    "manifolds",
    "measures",
    "open_run",
    "regularized",
    "row_descent",
    "runge_kutta",
    "shuffled_epochs",
    "simultaneous",
    "sweep",
    "with_replacement",
]
