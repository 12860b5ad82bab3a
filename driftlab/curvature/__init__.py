"""Matrix-free linear algebra on a loss: its matrices as operators, their spectra and traces.

Operators are `lineax` linear operators over pytrees, so its solvers take them too. Everything is
pure and works under `jax.jit` and `jax.vmap`.
"""

from driftlab.curvature.batching import mean_over_batches
from driftlab.curvature.conjugate_gradients import Solution, conjugate_gradients
from driftlab.curvature.eigenpairs import Eigenpairs, eigenpairs
from driftlab.curvature.estimates import Estimate, frobenius_norm, trace
from driftlab.curvature.gauss_newton import empirical_fisher, fisher, gauss_newton
from driftlab.curvature.kernels import (
    kernel_distance,
    kernel_spectrum,
    kernel_target_alignment,
    relu_kernel,
)
from driftlab.curvature.lazy_training import (
    descent_bound,
    flow_bound,
    linearized_residuals,
    movement_bound,
)
from driftlab.curvature.lobpcg import initial_block, tracked_eigenpairs
from driftlab.curvature.ntk import ntk, ntk_costs
from driftlab.curvature.ntk_operator import ntk_operator
from driftlab.curvature.operators import (
    Operator,
    damped,
    hessian,
    preconditioned,
    symmetric_operator,
)
from driftlab.curvature.per_example import (
    GradientMoments,
    gradient_moments,
    per_example_gradient_norms,
)
from driftlab.curvature.preconditioner import preconditioner
from driftlab.curvature.quadrature import (
    Density,
    Quadrature,
    log_determinant,
    quadrature,
    spectral_density,
)
from driftlab.curvature.two_layer_relu_kernel import parallel_rows, relu_gram, smallest_eigenvalue

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "GradientMoments",
    "Operator",
    "Quadrature",
    "Solution",
    "conjugate_gradients",
    "damped",
    "descent_bound",
    "eigenpairs",
    "empirical_fisher",
    "fisher",
    "flow_bound",
    "frobenius_norm",
    "gauss_newton",
    "gradient_moments",
    "hessian",
    "initial_block",
    "kernel_distance",
    "kernel_spectrum",
    "kernel_target_alignment",
    "linearized_residuals",
    "log_determinant",
    "mean_over_batches",
    "movement_bound",
    "ntk",
    "ntk_costs",
    "ntk_operator",
    "parallel_rows",
    "per_example_gradient_norms",
    "preconditioned",
    "preconditioner",
    "quadrature",
    "relu_gram",
    "relu_kernel",
    "smallest_eigenvalue",
    "spectral_density",
    "symmetric_operator",
    "trace",
    "tracked_eigenpairs",
]
