"""Five models on 300 digits: gradient descent, scalar RMSProp and RMSProp at two rates each."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # As in configs/lr_sweep.py. Every step takes the full batch.
    config.data = "digits"
    config.train_size = 300
    config.normalization = "per_feature"
    config.labels = "one_hot"
    config.model = "mlp"
    config.model_args = "widths=(16,16),activation='tanh',scale=0.7"
    config.loss = "squared_error"

    # Which of gradient_descent, scalar_rmsprop, rmsprop; comma-separated.
    config.optimizers = "gradient_descent,scalar_rmsprop,rmsprop"
    config.learning_rates = ml_collections.ConfigDict()
    config.learning_rates.gradient_descent = "0.6,0.8"
    config.learning_rates.scalar_rmsprop = "0.1,0.15"
    config.learning_rates.rmsprop = "7e-4,1e-3"
    # Of both RMSProps; the scalar one has no eps.
    config.b2 = 0.99
    config.eps = 1e-7
    config.seeds = "1"

    # Steps of the optimiser before the models start where it is: RMSProp begins above its edge.
    config.warm_up_steps = 10
    config.steps = 600
    # Eigenvectors that the central flow follows, and its Euler steps an iteration.
    config.eigenvectors = 3
    config.substeps = 4
    # The effective sharpness at every n-th step: an odd number, for iterates alternate.
    config.sharpness_every = 5
    # Of the moving average to which predicted losses are compared: steps, odd.
    config.window = 51
    config.divergence_factor = 1e3
    config.seed = 0
    return config
