"""SGD and Adam on digits against their stochastic differential equations."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Weak orders: linear regression of the digits' parity on their first principal components.
    # h lambda: learning rates in units of the inverse of the sharpness.
    config.learning_rates = "0.2:0.00625:6"
    config.features = 6
    config.batch_size = 2
    # In units of 1 / lambda.
    config.time = 4.0

    config.data = "digits"
    config.train_size = 300
    # The network of the ensembles below, cross-entropy.
    config.width = 16
    # Members of an ensemble.
    config.seeds = "256"

    # SGD: learning rates, batch size, iterations, and steps of Euler's method an iteration.
    config.network_rates = "0.1,0.2,0.4"
    config.network_batch_size = 8
    config.steps = 40
    config.solver_steps = 4

    # Adam: iterations before the equation starts, and after.
    config.adam_rate = 0.002
    config.adam_batch_size = 2
    config.adam_decays = (0.95, 0.99)
    config.warm_up = 64
    config.adam_steps = 128
    # The batch and what scales with it.
    config.factor = 4
    config.seed = 0
    return config
