"""What a run records: pure functions of a `Snapshot`.

A measure takes a `driftlab.Snapshot` and returns an array (recorded under the function's name) or
a dict of named arrays. To add one, write a function and hand it to `sweep(measures=[...])`; wrap
it in `every(measure, n)` to record it at every n-th record only.
"""

from driftlab.measures import ranking, von_mises_fisher, von_mises_fisher_samples
from driftlab.measures.activation_patterns import changed_patterns, unit_distances
from driftlab.measures.blocking import Blocks, Window, add_to_blocks, empty_blocks, last_half
from driftlab.measures.direction_concentration import gradient_directions
from driftlab.measures.drift import iteration_drift
from driftlab.measures.evaluation import evaluation, training
from driftlab.measures.fluctuation_curvature import (
    HessianMagnitude,
    hessian_magnitude,
    second_relation,
)
from driftlab.measures.fluctuation_dissipation import first_relation, weight_norm_balance
from driftlab.measures.fluctuation_tracking import (
    FluctuationDissipationState,
    relation_terms,
    track_fluctuation_dissipation,
)
from driftlab.measures.gradient_noise import (
    gradient_covariance_trace,
    gradient_noise,
    gradient_noise_scale,
    gradient_signal_to_noise,
    per_example_gradient_norm,
    update_cosine,
)
from driftlab.measures.kernel import kernel
from driftlab.measures.layer_balance import (
    balancedness,
    balancedness_change,
    balancedness_drift,
    balancedness_source,
    balancedness_velocity,
    momentum_balancedness_factor,
)
from driftlab.measures.layer_matrices import network_matrices
from driftlab.measures.layerwise import layer_names, layerwise
from driftlab.measures.norms import (
    distance_from_initialization,
    effective_learning_rate,
    gradient_norm,
    parameter_norm,
    update_norm,
)
from driftlab.measures.players import player_losses
from driftlab.measures.rank import effective_rank, stable_rank
from driftlab.measures.recording import Measure, Tracker, every, initial_memory, record
from driftlab.measures.samples import (
    Moments,
    SampleScorer,
    feature_moments,
    frechet_distance,
    inception_score,
    reference_values,
    sample_quality,
    sample_scorer,
    sample_scores,
)
from driftlab.measures.sharpness import gradient_alignment, preconditioned_sharpness, sharpness
from driftlab.measures.singular_alignment import (
    AlignmentBounds,
    alignment_bounds,
    layer_alignment,
    normalized_margin,
    spectral_ratio,
)
from driftlab.measures.spectrum import (
    hessian_effective_rank,
    hessian_trace,
    rayleigh_quotient,
    spectral_density,
)
from driftlab.measures.stationarity import norm_trend_test, ratio_test, residual_test
from driftlab.measures.two_batch import gradient_noise_scale_two_batch, ratio_of_means
from driftlab.measures.values import loss, objective_value

DEFAULT: tuple[Measure, ...] = (
    loss,
    gradient_norm,
    update_norm,
    parameter_norm,
    distance_from_initialization,
    effective_learning_rate,
)

__all__ = [
    "DEFAULT",
    "AlignmentBounds",
    "Blocks",
    "FluctuationDissipationState",
    "HessianMagnitude",
    "Measure",
    "Moments",
    "SampleScorer",
    "Tracker",
    "Window",
    "add_to_blocks",
    "alignment_bounds",
    "balancedness",
    "balancedness_change",
    "balancedness_drift",
    "balancedness_source",
    "balancedness_velocity",
    "changed_patterns",
    "distance_from_initialization",
    "effective_learning_rate",
    "effective_rank",
    "empty_blocks",
    "evaluation",
    "every",
    "feature_moments",
    "first_relation",
    "frechet_distance",
    "gradient_alignment",
    "gradient_covariance_trace",
    "gradient_directions",
    "gradient_noise",
    "gradient_noise_scale",
    "gradient_noise_scale_two_batch",
    "gradient_norm",
    "gradient_signal_to_noise",
    "hessian_effective_rank",
    "hessian_magnitude",
    "hessian_trace",
    "inception_score",
    "initial_memory",
    "iteration_drift",
    "kernel",
    "last_half",
    "layer_alignment",
    "layer_names",
    "layerwise",
    "loss",
    "momentum_balancedness_factor",
    "network_matrices",
    "norm_trend_test",
    "normalized_margin",
    "objective_value",
    "parameter_norm",
    "per_example_gradient_norm",
    "player_losses",
    "preconditioned_sharpness",
    "ranking",
    "ratio_of_means",
    "ratio_test",
    "rayleigh_quotient",
    "record",
    "reference_values",
    "relation_terms",
    "residual_test",
    "sample_quality",
    "sample_scorer",
    "sample_scores",
    "second_relation",
    "sharpness",
    "spectral_density",
    "spectral_ratio",
    "stable_rank",
    "track_fluctuation_dissipation",
    "training",
    "unit_distances",
    "update_cosine",
    "update_norm",
    "von_mises_fisher",
    "von_mises_fisher_samples",
    "weight_norm_balance",
]
