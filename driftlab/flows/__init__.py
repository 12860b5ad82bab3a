"""Continuous-time models: vector fields `field(t, y, args) -> dy/dt`, and what follows them.

A field is what `diffrax.ODETerm` takes. `solve` follows one over an interval; `flow` makes a
`driftlab.Dynamics` of it. diffrax itself is imported when something is solved.
"""

from driftlab.flows.a2grad_flow import A2GradFlowState, a2grad_flow
from driftlab.flows.accelerated import (
    accelerated_momentum,
    bregman_flow,
    high_resolution_convex_flow,
    high_resolution_heavy_ball_flow,
    high_resolution_nesterov_flow,
    su_boyd_candes_flow,
)
from driftlab.flows.adaptive import (
    adam_flow,
    rmsprop_flow,
    rmsprop_start,
)
from driftlab.flows.arc_length import arc_length_flow
from driftlab.flows.backward_error import (
    modified_equation_terms,
    series_flow,
    taylor_coefficients,
)
from driftlab.flows.batch_order import (
    batch_order_flow,
    batch_order_loss,
    shuffled_epoch_loss,
    split_batches,
)
from driftlab.flows.central import (
    CentralState,
    central_flow,
)
from driftlab.flows.central_predictions import (
    central_averages,
    covariance_eigenpairs,
)
from driftlab.flows.complementarity import (
    Complementarity,
    solve_complementarity,
)
from driftlab.flows.discretization_drift import (
    per_iteration_drift,
    total_drift,
)
from driftlab.flows.dynamics import (
    FlowState,
    flow,
)
from driftlab.flows.edge import (
    Edge,
    edge_flow,
)
from driftlab.flows.game_equilibrium import (
    GameStability,
    Play,
    Stability,
    game_stability,
)
from driftlab.flows.game_losses import (
    modified_game_losses,
)
from driftlab.flows.game_spectra import (
    Conditions,
    Eigenvalues,
    dense_jacobian,
    field_conditions,
    leading_eigenvalues,
    map_conditions,
    spectral_abscissa,
    spectral_radius,
)
from driftlab.flows.games import (
    drift_term,
    game_flow,
    game_log_map_flow,
    game_step,
    interaction_coefficients,
)
from driftlab.flows.gradient import (
    gradient_flow,
    preconditioned_gradient_flow,
)
from driftlab.flows.gradient_descent import (
    gradient_descent_flow,
    gradient_descent_terms,
    modified_loss,
)
from driftlab.flows.instability import (
    Instability,
    instability_prediction,
)
from driftlab.flows.invariant_manifold import (
    attraction_rate,
    distance_to_manifold,
    manifold_velocity,
    mode_multipliers,
)
from driftlab.flows.joint import OptimizerState
from driftlab.flows.lanes import solve_lanes
from driftlab.flows.modified import (
    modified_flow,
)
from driftlab.flows.momentum import (
    inertial_flow,
    modified_momentum_flow,
    modified_momentum_loss,
    rescaled_gradient_flow,
    transient_momentum_flow,
)
from driftlab.flows.momentum_notation import (
    MomentumNotations,
    correction_limit,
    inertia,
    initial_shift,
    modified_loss_coefficient,
    momentum_notations,
    stability_threshold,
    unified_points,
)
from driftlab.flows.one_step import (
    log_map_flow,
    step_sequence,
)
from driftlab.flows.order import (
    fitted_order,
    observed_orders,
)
from driftlab.flows.principal import (
    principal_directions,
    principal_flow,
)
from driftlab.flows.principal_complex import PrincipalState
from driftlab.flows.riemannian import (
    riemannian_adam_flow,
    riemannian_descent_flow,
    riemannian_gradient_flow,
    riemannian_shuffled_epoch_flow,
)
from driftlab.flows.rod import (
    Rod,
    rod_flow,
)
from driftlab.flows.saving import Saved, gradients_per_evaluation, solve_at
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
from driftlab.flows.stability_coefficients import (
    principal_coefficient,
    truncated_coefficient,
)
from driftlab.flows.stable import (
    stable_flow,
)
from driftlab.flows.stochastic import (
    StochasticFlow,
    sgd_sde,
)
from driftlab.flows.stochastic_adaptive import (
    AdaptiveState,
    adam_sde,
    rmsprop_sde,
    square_root_scaling,
)
from driftlab.flows.stochastic_solve import (
    sde_flow,
    solve_sde,
)
from driftlab.flows.vector_field import (
    Flow,
)

__all__ = [
    "NONFINITE",
    "RESULTS",
    "SMALLEST_STEP",
    "SOLVED",
    "SOLVER_FAILED",
    "STEP_LIMIT",
    "A2GradFlowState",
    "AdaptiveState",
    "CentralState",
    "Complementarity",
    "Conditions",
    "Edge",
    "Eigenvalues",
    "Flow",
    "FlowState",
    "GameStability",
    "Instability",
    "MomentumNotations",
    "OptimizerState",
    "Play",
    "PrincipalState",
    "Rod",
    "Saved",
    "Solved",
    "Stability",
    "StochasticFlow",
    "a2grad_flow",
    "accelerated_momentum",
    "adam_flow",
    "adam_sde",
    "arc_length_flow",
    "attraction_rate",
    "batch_order_flow",
    "batch_order_loss",
    "bregman_flow",
    "central_averages",
    "central_flow",
    "correction_limit",
    "covariance_eigenpairs",
    "dense_jacobian",
    "distance_to_manifold",
    "drift_term",
    "edge_flow",
    "field_conditions",
    "fitted_order",
    "flow",
    "game_flow",
    "game_log_map_flow",
    "game_stability",
    "game_step",
    "gradient_descent_flow",
    "gradient_descent_terms",
    "gradient_flow",
    "gradients_per_evaluation",
    "high_resolution_convex_flow",
    "high_resolution_heavy_ball_flow",
    "high_resolution_nesterov_flow",
    "inertia",
    "inertial_flow",
    "initial_shift",
    "instability_prediction",
    "interaction_coefficients",
    "leading_eigenvalues",
    "log_map_flow",
    "manifold_velocity",
    "map_conditions",
    "mode_multipliers",
    "modified_equation_terms",
    "modified_flow",
    "modified_game_losses",
    "modified_loss",
    "modified_loss_coefficient",
    "modified_momentum_flow",
    "modified_momentum_loss",
    "momentum_notations",
    "observed_orders",
    "per_iteration_drift",
    "preconditioned_gradient_flow",
    "principal_coefficient",
    "principal_directions",
    "principal_flow",
    "rescaled_gradient_flow",
    "riemannian_adam_flow",
    "riemannian_descent_flow",
    "riemannian_gradient_flow",
    "riemannian_shuffled_epoch_flow",
    "rmsprop_flow",
    "rmsprop_sde",
    "rmsprop_start",
    "rod_flow",
    "sde_flow",
    "series_flow",
    "sgd_sde",
    "shuffled_epoch_loss",
    "solve",
    "solve_at",
    "solve_complementarity",
    "solve_lanes",
    "solve_sde",
    "spectral_abscissa",
    "spectral_radius",
    "split_batches",
    "square_root_scaling",
    "stability_threshold",
    "stable_flow",
    "step_sequence",
    "su_boyd_candes_flow",
    "taylor_coefficients",
    "total_drift",
    "transient_momentum_flow",
    "truncated_coefficient",
    "unified_points",
]
