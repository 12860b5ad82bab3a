"""The reference's perceptron on digits: 6 learning rates x 2 seeds, batches of 10, 420 epochs."""

import ml_collections

from configs import fluctuation_dissipation_small


def get_config() -> ml_collections.ConfigDict:
    config = fluctuation_dissipation_small.get_config()
    config.learning_rates = "0.01,0.02,0.05,0.1,0.2,0.4"
    config.seeds = "2"
    config.steps = 60000
    config.record_every = 201
    return config
