"""What is added to a loss or done to a network's parameters, to make it smoother.

Penalties are functions `(params, batch) -> scalar` for `driftlab.regularized`; spectral
normalisation is a transform of parameters; what is added to the gradients of a game's players are
corrections for `driftlab.corrected`.
"""

from driftlab.regularizers.games import (
    consensus_optimization,
    drift_correction,
    gradient_norm_correction,
    symplectic_gradient_adjustment,
    weighted_correction,
)
from driftlab.regularizers.gradient_norm import squared_gradient_norm
from driftlab.regularizers.spectral_norm import (
    carry_spectral_vectors,
    initial_vectors,
    largest_singular_value,
    spectral_normalize,
    spectrally_normalized,
    with_vectors,
)

__all__ = [
    "carry_spectral_vectors",
    "consensus_optimization",
    "drift_correction",
    "gradient_norm_correction",
    "initial_vectors",
    "largest_singular_value",
    "spectral_normalize",
    "spectrally_normalized",
    "squared_gradient_norm",
    "symplectic_gradient_adjustment",
    "weighted_correction",
    "with_vectors",
]
