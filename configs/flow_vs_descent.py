"""Gradient descent on the banana, beside its flows: slopes over a decade, and three portraits."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # quadratic, rosenbrock, perturbed_rosenbrock, or network: that of the fields at the end.
    config.problem = "perturbed_rosenbrock"
    # An optax alias, contrib.NAME, one of driftlab.transforms, or module:function; its arguments.
    config.optimizer = "sgd"
    config.optimizer_args = ""
    # Of gradient descent: gradient_flow, order_P, principal, principal_extra. Of any optimiser:
    # modified_P (its memory in the ODE) and eliminated_P (P = 1, 2: solved for). auto: all of the
    # first kind for sgd without arguments, else modified_1 to modified_4.
    config.flows = "auto"

    # Slopes are fitted over these, at the first iterate and at time n h = duration; each is moved
    # to the nearest duration / n.
    config.learning_rates = "0.003:0.03:5"
    config.duration = 0.6
    # Further rates whose distances are drawn against the step: for gradient descent below and above
    # 1 / lambda (lambda = 6.07 at the start).
    config.shown_rates = "0.1,0.25"
    config.shown_steps = 40
    # Iterations before the comparison starts, for bias corrections to be over.
    config.warm_up = 0
    # Of the flows' solver, relative to the parameters; at the further rates, where the principal
    # flow passes the singularity h lambda = 1, through which no small tolerance leads.
    config.rtol = 1e-12
    config.shown_rtol = 1e-6

    # 2-D problems whose trajectories are drawn, at these h lambda_0; empty for none.
    config.portraits = "quadratic,rosenbrock,perturbed_rosenbrock"
    config.portrait_rates = "0.5,1.5,2.1"
    config.portrait_steps = 12

    # The network: what it is trained on, as in configs/lr_sweep.py; full batches.
    config.data = "digits"
    config.train_size = 500
    config.normalization = "unit"
    config.labels = "classes"
    config.model = "mlp"
    config.model_args = "widths=(16,),activation='tanh'"
    config.loss = "cross_entropy"
    # Krylov dimension of the principal flow of a network.
    config.products = 12

    config.seed = 0
    return config
